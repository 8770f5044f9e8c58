# cmake -DSOURCE=<this repository> -DBUILD=<its build tree> -DMODE=find_package|add_subdirectory -DWORK=<scratch>
#       -DPREFIX_PATH=... -DCOMPILER=... -DGENERATOR=... -P run.cmake
# Builds and runs the consumer project as a user would: from an installed package, or with the sources inside its tree.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE "${WORK}")
set(arguments -G "${GENERATOR}" -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_COMPILER=${COMPILER}")
if(MODE STREQUAL "find_package")
  execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${WORK}/prefix" COMMAND_ERROR_IS_FATAL ANY)
  list(PREPEND PREFIX_PATH "${WORK}/prefix")
else()
  list(APPEND arguments "-DSEQMIX_SOURCE=${SOURCE}")
endif()
execute_process(
  COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}/tests/consumer/${MODE}" -B "${WORK}/build" ${arguments}
          "-DCMAKE_PREFIX_PATH=${PREFIX_PATH}"
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${WORK}/build" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${WORK}/build/consumer" COMMAND_ERROR_IS_FATAL ANY)
