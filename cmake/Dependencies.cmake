# Everything comes from the system; nothing is downloaded. Interface targets hide where a library
# was found and whether it is linked statically: hadal::grpc, hadal::protobuf, hadal::mpi,
# hadal::json, hadal::log, hadal::cli, hadal::pcre2.
if(HADAL_STATIC)
  set(CMAKE_FIND_LIBRARY_SUFFIXES .a ${CMAKE_FIND_LIBRARY_SUFFIXES})
  set(Protobuf_USE_STATIC_LIBS ON)
endif()

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)  # before gRPC: its config asks for protobuf's targets
find_package(gRPC CONFIG REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
set(MPI_CXX_SKIP_MPICXX ON)
find_package(MPI REQUIRED COMPONENTS CXX)

function(hadal_static_lib out)
  find_library(HADAL_LIB_${ARGN} NAMES lib${ARGN}.a REQUIRED)
  set(${out} ${HADAL_LIB_${ARGN}} PARENT_SCOPE)
endfunction()

add_library(hadal_protobuf INTERFACE)
add_library(hadal::protobuf ALIAS hadal_protobuf)
add_library(hadal_grpc INTERFACE)
add_library(hadal::grpc ALIAS hadal_grpc)
if(HADAL_SANITIZE MATCHES "undefined")
  # Its headers are slow to compile with this check, and ours to check are the kernels.
  target_compile_options(hadal_grpc INTERFACE -fno-sanitize=alignment)
endif()
find_path(HADAL_PCRE2_INCLUDE pcre2.h REQUIRED)
find_library(HADAL_PCRE2_LIB pcre2-8 REQUIRED)
add_library(hadal_pcre2 INTERFACE)
add_library(hadal::pcre2 ALIAS hadal_pcre2)
target_include_directories(hadal_pcre2 INTERFACE ${HADAL_PCRE2_INCLUDE})
target_link_libraries(hadal_pcre2 INTERFACE ${HADAL_PCRE2_LIB})

if(HADAL_STATIC)
  hadal_static_lib(lib_protobuf protobuf)
  target_link_libraries(hadal_protobuf INTERFACE ${lib_protobuf} Threads::Threads)
  foreach(name grpc++_reflection grpc++ grpc gpr upb address_sorting re2 cares ssl crypto z)
    hadal_static_lib(lib_${name} ${name})
  endforeach()
  get_filename_component(lib_dir ${lib_grpc} DIRECTORY)
  file(GLOB absl_libs ${lib_dir}/libabsl_*.a)
  target_link_libraries(hadal_grpc INTERFACE
    -Wl,--whole-archive ${lib_grpc++_reflection} -Wl,--no-whole-archive
    ${lib_grpc++} ${lib_grpc} ${lib_gpr} ${lib_upb} ${lib_address_sorting} ${lib_protobuf} ${lib_re2}
    -Wl,--start-group ${absl_libs} -Wl,--end-group
    ${lib_cares} ${lib_ssl} ${lib_crypto} ${lib_z} Threads::Threads ${CMAKE_DL_LIBS})
else()
  target_link_libraries(hadal_protobuf INTERFACE protobuf::libprotobuf)
  # Reflection registers itself from a static initialiser, so the linker must keep the library.
  target_link_libraries(hadal_grpc INTERFACE
    -Wl,--no-as-needed gRPC::grpc++_reflection -Wl,--as-needed gRPC::grpc++ protobuf::libprotobuf)
endif()

add_library(hadal_json INTERFACE)
add_library(hadal::json ALIAS hadal_json)
target_link_libraries(hadal_json INTERFACE nlohmann_json::nlohmann_json)
add_library(hadal_log INTERFACE)
add_library(hadal::log ALIAS hadal_log)
if(HADAL_STATIC)
  target_link_libraries(hadal_log INTERFACE fmt::fmt-header-only)
  target_compile_definitions(hadal_log INTERFACE SPDLOG_FMT_EXTERNAL)
else()
  target_link_libraries(hadal_log INTERFACE spdlog::spdlog fmt::fmt)
endif()
add_library(hadal_cli INTERFACE)
add_library(hadal::cli ALIAS hadal_cli)
target_link_libraries(hadal_cli INTERFACE CLI11::CLI11)
add_library(hadal_mpi INTERFACE)
add_library(hadal::mpi ALIAS hadal_mpi)
target_link_libraries(hadal_mpi INTERFACE MPI::MPI_CXX)
