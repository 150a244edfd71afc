set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
# -g1 keeps backtraces with line numbers at a fraction of the size of full debug information.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")

find_program(HADAL_CCACHE ccache)
if(HADAL_CCACHE)
  # What one clone compiled serves every other.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=true ${HADAL_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()

add_library(hadal_compile_options INTERFACE)
target_compile_options(hadal_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wno-missing-field-initializers;-Werror=return-type>)
# fmt distrusts the constexpr of every nvcc; that of today is sound.
target_compile_definitions(hadal_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
target_include_directories(hadal_compile_options INTERFACE ${PROJECT_SOURCE_DIR})

# Files compiled together, those of libraries where a preset asks for it, read the same headers once.
set(CMAKE_UNITY_BUILD_BATCH_SIZE 16)

if(HADAL_SANITIZE)
  add_compile_options(-fsanitize=${HADAL_SANITIZE} -fno-omit-frame-pointer -g1 -O1)
  add_link_options(-fsanitize=${HADAL_SANITIZE})
  if(HADAL_SANITIZE MATCHES "undefined")
    # These checks double the time of compiling; a null pointer is AddressSanitizer's to find.
    add_compile_options(-fno-sanitize=vptr,null)
  endif()
endif()
if(HADAL_STATIC)
  add_link_options(-static-libstdc++ -static-libgcc)
endif()
