#include "tools/output_directory.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>

#include "common/atomic_file.h"
#include "common/file.h"
#include "tools/directory_lock.h"
#include "tools/progress.h"
#include "tools/read_back.h"

namespace hadal {
namespace {
namespace fs = std::filesystem;

uint64_t SizeOf(const std::string& path) {
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  return error ? 0 : size;
}

bool IsRegularFile(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

[[noreturn]] void ThrowErrno(const std::string& path) {
  throw std::system_error(errno, std::generic_category(), path);
}

// One file of the plan as it stands in the directory.
struct Target {
  std::string path;
  uint64_t bytes = 0;
  bool present = false;  // of the right size
};

std::vector<Target> Targets(const OutputPlan& plan) {
  std::vector<Target> targets;
  const auto add = [&](const std::string& name, uint64_t bytes) {
    const std::string path = plan.directory + "/" + name;
    targets.push_back({path, bytes, IsRegularFile(path) && SizeOf(path) == bytes});
  };
  for (const OutputFile& shard : plan.shards) add(shard.name, shard.bytes);
  for (const std::string& name : plan.copies) add(name, SizeOf(plan.source_dir + "/" + name));
  for (const auto& [name, text] : plan.texts) add(name, text.size());
  return targets;
}

struct Space {
  uint64_t needed = 0;
  uint64_t available = 0;
};

// Temporary files of a killed run are overwritten, so their space counts as free. REQUIRES: an
// ancestor of the directory exists.
Space SpaceFor(const OutputPlan& plan) {
  Space space;
  for (const Target& target : Targets(plan)) {
    if (!target.present) space.needed += target.bytes;
    space.available += SizeOf(target.path + std::string(AtomicFile::kSuffix));
  }
  fs::path existing = fs::absolute(plan.directory);
  std::error_code error;
  while (!fs::exists(existing, error) && existing.has_relative_path()) {
    existing = existing.parent_path();
  }
  struct statvfs info {};
  if (statvfs(existing.c_str(), &info) != 0) ThrowErrno(existing.string());
  space.available += static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  return space;
}

Status CheckSpace(const OutputPlan& plan) {
  const Space space = SpaceFor(plan);
  if (space.needed <= space.available) return OkStatus();
  return ResourceExhausted(
      "{} has {} free, but {} are needed; free {} there or give another "
      "directory",
      plan.directory, ByteText(space.available), ByteText(space.needed),
      ByteText(space.needed - space.available));
}

// Another checkpoint's shards next to ours would be read with them.
Status CheckForeignFiles(const OutputPlan& plan) {
  std::error_code error;
  if (fs::exists(plan.directory, error) && fs::equivalent(plan.source_dir, plan.directory, error)) {
    return InvalidArgument("{} is the source itself; give another output directory",
                           plan.directory);
  }
  std::set<std::string> own = {"model.safetensors.index.json"};
  for (const OutputFile& shard : plan.shards) own.insert(shard.name);
  for (fs::directory_iterator it(plan.directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    const bool weights = name.ends_with(".safetensors") || name == "model.safetensors.index.json";
    if (weights && own.count(name) == 0) {
      return InvalidArgument("{} holds {}, which this run would not write; give an empty directory",
                             plan.directory, name);
    }
  }
  return OkStatus();
}

class Writer {
 public:
  Writer(const OutputPlan& plan, const RunOptions& options)
      : plan_(plan), options_(options), progress_(TotalBytes(plan), options.report) {}

  static uint64_t TotalBytes(const OutputPlan& plan) {
    uint64_t total = 0;
    for (const OutputFile& shard : plan.shards) total += shard.bytes - shard.prefix.size();
    return total;
  }

  StatusOr<RunSummary> Write() {
    for (const OutputFile& shard : plan_.shards) HADAL_RETURN_IF_ERROR(KeepOrWrite(shard));
    for (const std::string& name : plan_.copies) {
      HADAL_RETURN_IF_ERROR(Copy(plan_.source_dir + "/" + name, plan_.directory + "/" + name));
    }
    for (const auto& [name, text] : plan_.texts) {
      WriteFileAtomically(plan_.directory + "/" + name, text);
    }
    return Summary();
  }

  StatusOr<RunSummary> Verify() {
    std::vector<std::string> problems;
    const auto add = [&](const Status& status) {
      if (!status.ok()) problems.push_back(status.message());
    };
    for (const OutputFile& shard : plan_.shards) {
      const Status same = CompareShard(shard);
      if (!same.ok() && same.code() != StatusCode::kAborted) return same;
      add(same);
      ++summary_.kept;
    }
    for (const std::string& name : plan_.copies) {
      add(CompareFiles(plan_.source_dir + "/" + name, plan_.directory + "/" + name));
    }
    for (const auto& [name, text] : plan_.texts) {
      add(CompareText(plan_.directory + "/" + name, text));
    }
    if (problems.empty()) return Summary();
    return Status(StatusCode::kAborted,
                  fmt::format("what the source gives differs in {} of the files of {}; run again "
                              "without --verify to write them anew:\n  {}",
                              problems.size(), plan_.directory, fmt::join(problems, "\n  ")));
  }

 private:
  RunSummary Summary() {
    summary_.bytes = progress_.done();
    summary_.seconds = progress_.seconds();
    return summary_;
  }

  Status CompareShard(const OutputFile& shard) {
    return CompareWithPlan(plan_.directory + "/" + shard.name, shard, options_.threads,
                           [this](uint64_t bytes) { progress_.Add(bytes); });
  }

  Status KeepOrWrite(const OutputFile& shard) {
    const std::string path = plan_.directory + "/" + shard.name;
    if (IsRegularFile(path)) {
      const Status same = CompareShard(shard);
      if (same.ok()) ++summary_.kept;
      if (same.code() != StatusCode::kAborted) return same;
    }
    // From here on the directory is no checkpoint until all is done.
    for (const auto& [name, text] : plan_.texts) {
      std::error_code ignored;
      fs::remove(plan_.directory + "/" + name, ignored);
    }
    AtomicFile file(path);
    file.WriteAt(0, std::as_bytes(std::span(shard.prefix)));
    HADAL_RETURN_IF_ERROR(ProduceFile(
        shard, options_.threads,
        [&](uint64_t offset, std::span<const std::byte> bytes) {
          file.WriteAt(offset, bytes);
          return OkStatus();
        },
        [this](uint64_t bytes) { progress_.Add(bytes); }));
    file.Commit();
    ++summary_.written;
    return OkStatus();
  }

  static Status Copy(const std::string& from, const std::string& to) {
    if (IsRegularFile(to) && CompareFiles(from, to).ok()) return OkStatus();
    std::ifstream in(from, std::ios::binary);
    if (!in) return DataLoss("{}: cannot be opened; check its permissions", from);
    fs::create_directories(fs::path(to).parent_path());
    AtomicFile file(to);
    std::vector<char> buffer(1 << 20);
    uint64_t offset = 0;
    while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
      const std::span chunk(buffer.data(), static_cast<size_t>(in.gcount()));
      file.WriteAt(offset, std::as_bytes(chunk));
      offset += chunk.size();
    }
    if (in.bad()) return DataLoss("{}: cannot be read; the disk may be damaged", from);
    file.Commit();
    return OkStatus();
  }

  const OutputPlan& plan_;
  const RunOptions& options_;
  Progress progress_;
  RunSummary summary_;
};

}  // namespace

StatusOr<std::string> DescribePlan(const OutputPlan& plan) {
  HADAL_RETURN_IF_ERROR(CheckForeignFiles(plan));
  std::string text;
  for (const Target& target : Targets(plan)) {
    text += fmt::format("{:>12}  {}{}\n", ByteText(target.bytes), target.path,
                        target.present ? "  (there; kept if equal)" : "");
  }
  for (const std::string& note : plan.notes) text += note + "\n";
  const Space space = SpaceFor(plan);
  text += fmt::format("{} to write, {} free\n", ByteText(space.needed), ByteText(space.available));
  HADAL_RETURN_IF_ERROR(CheckSpace(plan));
  return text;
}

StatusOr<RunSummary> WriteOutput(const OutputPlan& plan, const RunOptions& options) {
  HADAL_RETURN_IF_ERROR(CheckForeignFiles(plan));
  HADAL_RETURN_IF_ERROR(CheckSpace(plan));
  fs::create_directories(plan.directory);
  const DirectoryLock lock(plan.directory);
  if (lock.state() == DirectoryLock::State::kTaken) {
    return Unavailable("another run is writing {}; wait for it", plan.directory);
  }
  if (lock.state() == DirectoryLock::State::kNotSupported) {
    options.report(fmt::format("{}: this file system has no locks, so another run that writes here would "
                               "not be noticed", plan.directory));
  }
  return Writer(plan, options).Write();
}

StatusOr<RunSummary> VerifyOutput(const OutputPlan& plan, const RunOptions& options) {
  return Writer(plan, options).Verify();
}

}  // namespace hadal
