# Install and export rules; find_package(lowbit) works from the install tree and from the build tree.
#
# Two export sets, because two of the three libraries need no libtorch: a consumer of lowbit::io or lowbit::kernels
# (find_package(lowbit COMPONENTS io kernels)) never looks for it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(lowbit_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/lowbit")
install(TARGETS lowbit_kernels lowbit_io EXPORT lowbitCoreTargets)
install(TARGETS lowbit EXPORT lowbitTargets)
if(TARGET lowbit_cli)
  install(TARGETS lowbit_cli)
endif()
install(DIRECTORY include/lowbit kernels/include/lowbit "${PROJECT_BINARY_DIR}/include/lowbit"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(FILES cmake/LowbitTorch.cmake DESTINATION "${lowbit_package_dir}")
configure_file(cmake/LowbitTorch.cmake "${PROJECT_BINARY_DIR}/LowbitTorch.cmake" COPYONLY)

configure_package_config_file(cmake/lowbitConfig.cmake.in "${PROJECT_BINARY_DIR}/lowbitConfig.cmake"
  INSTALL_DESTINATION "${lowbit_package_dir}" NO_SET_AND_CHECK_MACRO)
# 0.x: a new minor version may break (docs/versioning.md).
write_basic_package_version_file("${PROJECT_BINARY_DIR}/lowbitConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/lowbitConfig.cmake" "${PROJECT_BINARY_DIR}/lowbitConfigVersion.cmake"
  DESTINATION "${lowbit_package_dir}")

foreach(set lowbitCoreTargets lowbitTargets)
  install(EXPORT ${set} NAMESPACE lowbit:: DESTINATION "${lowbit_package_dir}")
  export(EXPORT ${set} NAMESPACE lowbit:: FILE "${PROJECT_BINARY_DIR}/${set}.cmake")
endforeach()
