// What sanitizers report of libraries that are not ours and not built with them; linked into every
// program of a sanitizer build.

// OpenMPI unloads its plugins before it ends. They stay loaded instead, or the leak report could not
// name them, and no suppression would match.
extern "C" int dlclose(void*);
extern "C" int dlclose(void*) { return 0; }

extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  // OpenMPI keeps what it allocates at its start.
  return "leak:libmpi\nleak:libopen-pal\nleak:libopen-rte\nleak:libpmix\nleak:libevent\nleak:libhwloc\n"
         "leak:mca_\n";
}

extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  // Their locks and atomics are invisible, so what they do themselves looks like races. Not the whole of
  // libgpr, which makes gRPC's threads: every report about those would match. called_from_lib: what gRPC
  // hands to the C library is not looked at. One thread makes a message and another sends it, so each
  // word of the buffer was a report, to be made and dropped, which took minutes for a message of 4 MiB.
  return "called_from_lib:libgrpc.so\n"
         "race:libgrpc\nrace:libabsl\nrace:libprotobuf\nrace_top:grpc::internal\n"
         "race:gpr_malloc\nrace:gpr_zalloc\nrace:gpr_realloc\nrace:gpr_free\nrace:gpr_strdup\n";
}
