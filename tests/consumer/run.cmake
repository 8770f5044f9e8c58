# cmake -DSOURCE=<this repository> -DBUILD=<its build tree> -DMODE=find_package|add_subdirectory|fetch -DWORK=<scratch>
#       -DPREFIX_PATH=... -DCOMPILER=... -DGENERATOR=... -P run.cmake
#       -DXSIMD_INCLUDE=<where its headers are>
# Builds and runs the consumer project as a user would: from an installed package, with the sources inside its tree, or like
# that on a machine without xsimd, which is then fetched (here from an archive that this script makes).
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE "${WORK}")
set(arguments -G "${GENERATOR}" -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_COMPILER=${COMPILER}")
if(MODE STREQUAL "find_package")
  execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${WORK}/prefix" COMMAND_ERROR_IS_FATAL ANY)
  list(PREPEND PREFIX_PATH "${WORK}/prefix")
else()
  list(APPEND arguments "-DSEQMIX_SOURCE=${SOURCE}")
endif()
set(project "${MODE}")
if(MODE STREQUAL "fetch")
  set(project add_subdirectory)
  file(COPY "${XSIMD_INCLUDE}/xsimd" DESTINATION "${WORK}/xsimd/include")
  set(archive "${WORK}/xsimd.tar.gz")
  execute_process(COMMAND "${CMAKE_COMMAND}" -E tar czf "${archive}" xsimd WORKING_DIRECTORY "${WORK}"
    COMMAND_ERROR_IS_FATAL ANY)
  file(SHA256 "${archive}" hash)
  list(APPEND arguments -DCMAKE_DISABLE_FIND_PACKAGE_xsimd=ON "-DSEQMIX_URL_xsimd=file://${archive}"
    "-DSEQMIX_HASH_xsimd=${hash}")
endif()
execute_process(
  COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}/tests/consumer/${project}" -B "${WORK}/build" ${arguments}
          "-DCMAKE_PREFIX_PATH=${PREFIX_PATH}"
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${WORK}/build" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${WORK}/build/consumer" COMMAND_ERROR_IS_FATAL ANY)
