// What sanitizers report of libraries that are not ours and not built with them; linked into every
// program of a sanitizer build.

extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  // OpenMPI keeps what it allocates at its start.
  return "leak:libmpi\nleak:libopen-pal\nleak:libopen-rte\nleak:libpmix\nleak:libevent\nleak:libhwloc\n"
         "leak:mca_\n";
}
