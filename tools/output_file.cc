#include "tools/output_file.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "common/safetensors_writer.h"
#include "common/threads.h"

namespace hadal {
namespace {

// Read and written by one job: enough to hide a system call, and 64 threads hold 256 MiB.
constexpr uint64_t kJobBytes = 4 << 20;
// What all jobs together may hold.
constexpr uint64_t kMemoryBytes = 512 << 20;

struct Job {
  const Work* work = nullptr;
  Range rows;
};

std::vector<Job> SplitIntoJobs(const OutputFile& file) {
  std::vector<Job> jobs;
  for (const Work& work : file.works) {
    int64_t step = std::max<int64_t>(
        1, static_cast<int64_t>(kJobBytes / std::max<uint64_t>(1, work.row_bytes)));
    step = std::max(step / work.multiple * work.multiple, work.multiple);
    for (int64_t begin = 0; begin < work.rows; begin += step) {
      jobs.push_back({&work, {begin, std::min(begin + step, work.rows)}});
    }
  }
  return jobs;
}

int UsefulThreads(const std::vector<Job>& jobs, int threads) {
  uint64_t largest = 1;
  for (const Job& job : jobs) {
    largest = std::max(largest, static_cast<uint64_t>(job.rows.size()) * job.work->row_bytes);
  }
  const uint64_t most = std::min<uint64_t>(kMemoryBytes / largest, jobs.size());
  return static_cast<int>(std::clamp<uint64_t>(most, 1, static_cast<uint64_t>(threads)));
}

// The threads of one file take the next job until none is left or one has failed.
class FileRun {
 public:
  FileRun(const OutputFile& file, const Sink& sink, const std::function<void(uint64_t)>& done)
      : file_(file), sink_(sink), done_(done), jobs_(SplitIntoJobs(file)) {}

  Status Run(int max_threads) {
    const int count = UsefulThreads(jobs_, max_threads);
    RunOnThreads(count, [this] { Work(); });
    if (exception_) std::rethrow_exception(exception_);
    return status_;
  }

 private:
  void Work() {
    Production production;
    try {
      while (!failed_) {
        const size_t next = next_++;
        if (next >= jobs_.size()) return;
        const Status status = RunJob(jobs_[next], &production);
        if (status.ok()) continue;
        std::lock_guard lock(mutex_);
        failed_ = true;
        if (status_.ok()) status_ = status;
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      failed_ = true;
      if (!exception_) exception_ = std::current_exception();
    }
  }

  Status RunJob(const Job& job, Production* production) {
    production->pieces.clear();
    production->sources.clear();
    HADAL_RETURN_IF_ERROR(job.work->produce(job.rows, production));
    uint64_t bytes = 0;
    for (const Production::Piece& piece : production->pieces) {
      const uint64_t begin = file_.prefix.size() + file_.tensors[piece.tensor].begin;
      HADAL_RETURN_IF_ERROR(sink_(begin + piece.offset, piece.bytes));
      bytes += piece.bytes.size();
    }
    for (const Production::Source& source : production->sources) {
      source.file->Release(source.bytes);
    }
    done_(bytes);
    return OkStatus();
  }

  const OutputFile& file_;
  const Sink& sink_;
  const std::function<void(uint64_t)>& done_;
  const std::vector<Job> jobs_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  Status status_;                 // guarded by mutex_ until the threads have ended
  std::exception_ptr exception_;  // likewise
};

}  // namespace

StatusOr<std::span<const std::byte>> Production::Read(const Checkpoint::Entry& entry,
                                                      uint64_t offset, uint64_t size) {
  const std::span<const std::byte> bytes = entry.data().subspan(offset, size);
  HADAL_RETURN_IF_ERROR(entry.file->Prefetch(bytes));
  sources.push_back({entry.file, bytes});
  return bytes;
}

size_t OutputFile::AddTensor(std::string tensor_name, std::string dtype_name,
                             std::vector<int64_t> shape) {
  tensors.push_back({.name = std::move(tensor_name),
                     .dtype_name = std::move(dtype_name),
                     .shape = std::move(shape)});
  return tensors.size() - 1;
}

void OutputFile::Finish(std::string_view format) {
  prefix = LayOutSafetensors(format, &tensors);
  bytes = prefix.size();
  for (const TensorInfo& tensor : tensors) bytes += tensor.end - tensor.begin;
}

Status ProduceFile(const OutputFile& file, int threads, const Sink& sink,
                   const std::function<void(uint64_t bytes)>& done) {
  return FileRun(file, sink, done).Run(threads);
}

}  // namespace hadal
