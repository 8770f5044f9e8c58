# Install, export and package files: find_package(seqmix) after `cmake --install`.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(seqmix_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/seqmix")
install(TARGETS seqmix EXPORT seqmixTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT seqmixTargets NAMESPACE seqmix:: DESTINATION "${seqmix_package_dir}")
if(TARGET seqmix_safetensors)
  # Apart from the library, so that a program without nlohmann-json never meets a target that needs it.
  install(TARGETS seqmix_safetensors EXPORT seqmixSafetensorsTargets)
  install(EXPORT seqmixSafetensorsTargets NAMESPACE seqmix:: DESTINATION "${seqmix_package_dir}")
endif()

configure_package_config_file(cmake/seqmixConfig.cmake.in "${PROJECT_BINARY_DIR}/seqmixConfig.cmake"
  INSTALL_DESTINATION "${seqmix_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/seqmixConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/seqmixConfig.cmake" "${PROJECT_BINARY_DIR}/seqmixConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/Findxsimd.cmake" "${PROJECT_SOURCE_DIR}/cmake/versions.cmake"
  DESTINATION "${seqmix_package_dir}")
