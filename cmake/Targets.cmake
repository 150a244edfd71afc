# Keeps what its tests do not need out of a sanitizer build, and optimises none of what only parses
# and prints: instrumented code takes twice as long to compile.
function(hadal_lighten_sanitizer_build name)
  if(NOT HADAL_SANITIZE)
    return()
  endif()
  # ThreadSanitizer runs few whole programs, which ask for theirs; libraries are built where a test links them.
  if(name MATCHES "-bench$" OR (HADAL_SANITIZE STREQUAL "thread" AND
                                NOT CMAKE_CURRENT_SOURCE_DIR MATCHES "/tests/"))
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL TRUE)
  endif()
  if(CMAKE_CURRENT_SOURCE_DIR MATCHES
     "/(proto|client|tools|server|server/frontend|server/engine|worker|tests/support)$")
    target_compile_options(${name} PRIVATE -O0)
  endif()
endfunction()

# hadal_library(NAME SRCS a.cc b.cc DEPS hadal_common hadal::json)
#   One library per folder. DEPS are public; tests/check_layers.py refuses upward includes.
function(hadal_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SRCS})
  target_link_libraries(${name} PUBLIC hadal_compile_options ${ARG_DEPS})
  hadal_lighten_sanitizer_build(${name})
endfunction()

if(HADAL_SANITIZE)
  add_library(hadal_sanitizer OBJECT ${PROJECT_SOURCE_DIR}/cmake/sanitizer_suppressions.cc)
  set(HADAL_SANITIZER_OBJECTS $<TARGET_OBJECTS:hadal_sanitizer>)
endif()

# hadal_binary(NAME SRCS main.cc DEPS ...)
function(hadal_binary name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS} ${HADAL_SANITIZER_OBJECTS})
  target_link_libraries(${name} PRIVATE hadal_compile_options ${ARG_DEPS})
  hadal_lighten_sanitizer_build(${name})
endfunction()

# hadal_test(NAME [NO_TSAN] SRCS x_test.cc ... DEPS ...)
#   One Catch2 binary, one CTest entry. Every tests/**/*_test.cc must appear in exactly one of them
#   (hadal_check_tests_registered). NO_TSAN: it shows ThreadSanitizer nothing that other tests do
#   not, so that build leaves it out.
function(hadal_test name)
  cmake_parse_arguments(ARG "NO_TSAN" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS} ${HADAL_SANITIZER_OBJECTS})
  target_link_libraries(${name} PRIVATE hadal_test_main hadal_compile_options ${ARG_DEPS})
  # Optimising an instrumented test doubles the time of compiling it. Those of kernels, of
  # collectives and of the model compute what they expect, which would be slow.
  if(HADAL_SANITIZE AND NOT CMAKE_CURRENT_SOURCE_DIR MATCHES "/tests/(kernels/|worker/(comm|model))")
    target_compile_options(${name} PRIVATE -O0)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(ARG_NO_TSAN AND HADAL_SANITIZE STREQUAL "thread")
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL TRUE)
    set_tests_properties(${name} PROPERTIES DISABLED TRUE)
  endif()
  foreach(src ${ARG_SRCS})
    get_filename_component(path ${src} ABSOLUTE)
    set_property(GLOBAL APPEND PROPERTY HADAL_REGISTERED_TESTS ${path})
  endforeach()
endfunction()

function(hadal_check_tests_registered)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*_test.cc)
  get_property(registered GLOBAL PROPERTY HADAL_REGISTERED_TESTS)
  foreach(file ${files})
    if(NOT file IN_LIST registered)
      message(FATAL_ERROR "${file} is not registered: name it in a hadal_test() of its folder")
    endif()
  endforeach()
endfunction()
