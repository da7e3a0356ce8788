# lowbit_find_torch(): defines lowbit::torch, an interface target for the libtorch that is installed.
#
# Why not find_package(Torch): its CMake files refuse to configure a CUDA libtorch without a CUDA toolkit (although a
# CPU program needs none), switch CMAKE_CUDA_ARCHITECTURES off, append their own architecture flags to CMAKE_CUDA_FLAGS
# (sm_90a is lost) and warn about kineto. What a consumer needs is three facts: the include folders, the libraries and
# the ABI. They are read here from the same installation. A project that also calls find_package(Torch) may do so.
#
# Looked for in this order: a target `torch` that exists already, LOWBIT_TORCH_DIR (the folder that holds include/ and
# lib/), Torch_DIR, CMAKE_PREFIX_PATH, and the `torch` of the Python on PATH.
function(lowbit_find_torch)
  if(TARGET lowbit::torch)
    return()
  endif()
  set(hints ${LOWBIT_TORCH_DIR})
  if(Torch_DIR)
    list(APPEND hints "${Torch_DIR}/../../..")
  endif()
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
    list(APPEND hints "${prefix}" "${prefix}/../..")
  endforeach()
  if(DEFINED ENV{LOWBIT_TORCH_DIR})
    list(APPEND hints "$ENV{LOWBIT_TORCH_DIR}")
  endif()
  set(root "")
  foreach(hint IN LISTS hints)
    if(EXISTS "${hint}/include/ATen/ATen.h" AND EXISTS "${hint}/lib")
      get_filename_component(root "${hint}" ABSOLUTE)
      break()
    endif()
  endforeach()
  if(NOT root)
    execute_process(COMMAND python3 -c "import os, importlib.util as u; s = u.find_spec('torch'); print(os.path.dirname(s.origin) if s else '')"
      OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT root OR NOT EXISTS "${root}/include/ATen/ATen.h")
    message(FATAL_ERROR "lowbit: libtorch was not found. Set LOWBIT_TORCH_DIR to the folder that holds its include/ and lib/ "
      "(for Python's package: python3 -c 'import torch, os; print(os.path.dirname(torch.__file__))').")
  endif()

  file(STRINGS "${root}/include/torch/headeronly/version.h" lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" version "${lines}")
  string(REPLACE ";" "." version "${version}")
  if(version VERSION_LESS "2.11" OR NOT version VERSION_LESS "2.12")
    message(WARNING "lowbit is tested with libtorch 2.11; found ${version} at ${root}.")
  endif()

  add_library(lowbit_torch INTERFACE IMPORTED GLOBAL)
  add_library(lowbit::torch ALIAS lowbit_torch)
  target_include_directories(lowbit_torch SYSTEM INTERFACE "${root}/include" "${root}/include/torch/csrc/api/include")
  set(libs "${root}/lib/libtorch_cpu.so" "${root}/lib/libc10.so")
  # CUDA kernels register themselves when libtorch_cuda is loaded; the linker would drop a library without referenced
  # symbols, hence --no-as-needed. A CPU build leaves it out, and starts a second sooner.
  if(LOWBIT_HAS_CUDA AND EXISTS "${root}/lib/libtorch_cuda.so")
    list(APPEND libs "-Wl,--no-as-needed,${root}/lib/libtorch_cuda.so,--as-needed" "${root}/lib/libc10_cuda.so")
  endif()
  target_link_libraries(lowbit_torch INTERFACE ${libs})
  set(LOWBIT_TORCH_ROOT "${root}" CACHE INTERNAL "libtorch in use")
  set(LOWBIT_TORCH_VERSION "${version}" CACHE INTERNAL "libtorch's version")
  message(STATUS "lowbit: libtorch ${version} at ${root}")
endfunction()
