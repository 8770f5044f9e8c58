# Finds the headers of xsimd and defines xsimd::xsimd.
#
# xsimd's own package file is not used: distributions configure it with std::complex through xtl, and it then fails
# without that library, which nothing here needs. The headers alone say their version.
if(TARGET xsimd::xsimd)
  set(xsimd_FOUND TRUE)
  return()
endif()

if(TARGET xsimd)
  # The project around us already has xsimd: the same headers and definitions must be used everywhere.
  get_target_property(xsimd_INCLUDE_DIR xsimd INTERFACE_INCLUDE_DIRECTORIES)
  add_library(xsimd::xsimd INTERFACE IMPORTED GLOBAL)
  target_link_libraries(xsimd::xsimd INTERFACE xsimd)
  set(xsimd_FOUND TRUE)
  return()
endif()

find_path(xsimd_INCLUDE_DIR NAMES xsimd/xsimd.hpp)
set(xsimd_VERSION "")
if(xsimd_INCLUDE_DIR AND EXISTS "${xsimd_INCLUDE_DIR}/xsimd/config/xsimd_config.hpp")
  foreach(part IN ITEMS MAJOR MINOR PATCH)
    file(STRINGS "${xsimd_INCLUDE_DIR}/xsimd/config/xsimd_config.hpp" line REGEX "#define XSIMD_VERSION_${part} ")
    string(REGEX MATCH "[0-9]+" number "${line}")
    list(APPEND xsimd_VERSION "${number}")
  endforeach()
  list(JOIN xsimd_VERSION "." xsimd_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(xsimd REQUIRED_VARS xsimd_INCLUDE_DIR VERSION_VAR xsimd_VERSION)
mark_as_advanced(xsimd_INCLUDE_DIR)

if(xsimd_FOUND)
  add_library(xsimd::xsimd INTERFACE IMPORTED GLOBAL)
  target_include_directories(xsimd::xsimd INTERFACE "${xsimd_INCLUDE_DIR}")
else()
  # An old copy must not be remembered: a newer one may be put elsewhere before the next configuration.
  unset(xsimd_INCLUDE_DIR CACHE)
endif()
