# seqmix_need(<package>): the package, found on the machine, or fetched (pinned by hash) where it is not.
# seqmix_want(<package>): the package if the machine has it.
include(FetchContent)
include("${CMAKE_CURRENT_LIST_DIR}/versions.cmake")

set(seqmix_url_Eigen3 https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz)
set(seqmix_hash_Eigen3 8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72)
set(seqmix_url_xsimd https://github.com/xtensor-stack/xsimd/archive/refs/tags/13.2.0.tar.gz)
set(seqmix_hash_xsimd edd8cd3d548c185adc70321c53c36df41abe64c1fe2c67bc6d93c3ecda82447a)
set(seqmix_url_nlohmann_json https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz)
set(seqmix_hash_nlohmann_json d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
set(seqmix_url_Catch2 https://github.com/catchorg/Catch2/archive/refs/tags/v3.7.1.tar.gz)
set(seqmix_hash_Catch2 c991b247a1a0d7bb9c39aa35faf0fe9e19764213f28ffba3109388e62ee0269c)
set(seqmix_url_benchmark https://github.com/google/benchmark/archive/refs/tags/v1.9.1.tar.gz)
set(seqmix_hash_benchmark 32131c08ee31eeff2c8968d7e874f3cb648034377dfc32a4c377fa8796d84981)

# Other places to fetch from, a mirror for instance: -DSEQMIX_URL_<package>=... and, where the archive is another one,
# -DSEQMIX_HASH_<package>=<SHA-256>.
foreach(package IN ITEMS Eigen3 xsimd nlohmann_json Catch2 benchmark)
  foreach(what IN ITEMS url hash)
    string(TOUPPER "${what}" name)
    if(SEQMIX_${name}_${package})
      set(seqmix_${what}_${package} "${SEQMIX_${name}_${package}}")
    endif()
  endforeach()
endforeach()

# What `tests/run --dependencies` unpacked, after all other places. (A macro's find_package reads this variable.)
if(IS_DIRECTORY "${CMAKE_CURRENT_LIST_DIR}/../build/deps/usr")
  list(APPEND CMAKE_PREFIX_PATH "${CMAKE_CURRENT_LIST_DIR}/../build/deps/usr")
endif()

# The target that a package stands for, and for header-only packages the include directory inside its sources.
set(seqmix_target_Eigen3 Eigen3::Eigen)
set(seqmix_include_Eigen3 .)
set(seqmix_target_xsimd xsimd::xsimd)
set(seqmix_include_xsimd include)
set(seqmix_target_nlohmann_json nlohmann_json::nlohmann_json)
set(seqmix_include_nlohmann_json include)
set(seqmix_target_Catch2 Catch2::Catch2WithMain)
set(seqmix_target_benchmark benchmark::benchmark)
set(seqmix_target_TBB TBB::tbb)
set(seqmix_target_OpenMP OpenMP::OpenMP_CXX)

# A macro: what find_package sets has to reach the caller.
macro(seqmix_want package)
  if(NOT TARGET ${seqmix_target_${package}})
    if("${package}" STREQUAL "OpenMP")
      find_package(OpenMP ${seqmix_version_OpenMP} QUIET COMPONENTS CXX)
    else()
      find_package(${package} ${seqmix_version_${package}} QUIET)
    endif()
  endif()
endmacro()

macro(seqmix_need package)
  seqmix_want(${package})
  if(NOT TARGET ${seqmix_target_${package}})
    message(STATUS "seqmix: no ${package} >= ${seqmix_version_${package}} here, fetching ${seqmix_url_${package}} "
      "(on Debian, tests/run --dependencies finds it in the archives)")
    # SYSTEM first: CMake 3.25 takes it for a part of the value of the argument before it.
    set(seqmix_fetch_arguments SYSTEM URL ${seqmix_url_${package}} URL_HASH SHA256=${seqmix_hash_${package}}
        DOWNLOAD_EXTRACT_TIMESTAMP ON)
    if(seqmix_include_${package})
      # Header-only: unpacked, but its own build files are not run (the source folder named here does not exist). An
      # imported target, because our installed package finds the dependency itself and must not export ours.
      FetchContent_Declare(seqmix_${package} ${seqmix_fetch_arguments} SOURCE_SUBDIR unused)
      FetchContent_MakeAvailable(seqmix_${package})
      string(TOLOWER "seqmix_${package}_SOURCE_DIR" seqmix_source_variable)
      string(REPLACE "_source_dir" "_SOURCE_DIR" seqmix_source_variable "${seqmix_source_variable}")
      add_library(${seqmix_target_${package}} INTERFACE IMPORTED GLOBAL)
      target_include_directories(${seqmix_target_${package}} INTERFACE
        "${${seqmix_source_variable}}/${seqmix_include_${package}}")
    else()
      set(BENCHMARK_ENABLE_TESTING OFF CACHE BOOL "" FORCE)
      set(BENCHMARK_ENABLE_INSTALL OFF CACHE BOOL "" FORCE)
      FetchContent_Declare(seqmix_${package} ${seqmix_fetch_arguments})
      FetchContent_MakeAvailable(seqmix_${package})
    endif()
  endif()
endmacro()
