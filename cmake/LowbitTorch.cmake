# lowbit_find_torch(REASON): defines lowbit::torch, an interface target for the libtorch that is installed; sets the
# variable REASON to what went wrong, or to nothing. Also included by lowbitConfig.cmake, on the user's machine.
#
# Why not find_package(Torch): its CMake files refuse to configure a CUDA libtorch without a CUDA toolkit (although a
# CPU program needs none), switch CMAKE_CUDA_ARCHITECTURES off, append their own architecture flags to CMAKE_CUDA_FLAGS
# (sm_90a is lost) and warn about kineto. What a consumer needs is three facts: the include folders, the libraries and
# the ABI. They are read here from the same installation. A project that also calls find_package(Torch) may do so.
#
# Looked for in this order: LOWBIT_TORCH_DIR (the folder that holds include/ and lib/; variable, then environment),
# Torch_DIR, CMAKE_PREFIX_PATH, the one found before, the `torch` of the Python on PATH, and the one that this lowbit was
# built with.
function(lowbit_find_torch reason)
  set(${reason} "" PARENT_SCOPE)
  if(TARGET lowbit::torch)
    return()
  endif()
  set(hints ${LOWBIT_TORCH_DIR} $ENV{LOWBIT_TORCH_DIR})
  if(Torch_DIR)
    list(APPEND hints "${Torch_DIR}/../../..")
  endif()
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
    list(APPEND hints "${prefix}" "${prefix}/../..")
  endforeach()
  lowbit_first_torch(root "${hints};${LOWBIT_TORCH_ROOT}")
  if(NOT root)
    execute_process(
      COMMAND python3 -c "import os, importlib.util as u; s = u.find_spec('torch'); print(os.path.dirname(s.origin) if s else '')"
      OUTPUT_VARIABLE hints OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    lowbit_first_torch(root "${hints};${LOWBIT_BUILT_WITH_TORCH_DIR}")
  endif()
  if(NOT root)
    set(${reason} "libtorch was not found. Set LOWBIT_TORCH_DIR to the folder that holds its include/ and lib/ \
(for Python's package: python3 -c 'import torch, os; print(os.path.dirname(torch.__file__))')." PARENT_SCOPE)
    return()
  endif()

  file(STRINGS "${root}/include/torch/headeronly/version.h" lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" version "${lines}")
  string(REPLACE ";" "." version "${version}")
  if(LOWBIT_BUILT_WITH_TORCH_VERSION AND NOT LOWBIT_BUILT_WITH_TORCH_VERSION STREQUAL version)
    # libtorch keeps its C++ ABI within no two releases: a mixture links and then crashes.
    set(${reason} "it was built with libtorch ${LOWBIT_BUILT_WITH_TORCH_VERSION}, but ${root} is ${version}. \
Set LOWBIT_TORCH_DIR to libtorch ${LOWBIT_BUILT_WITH_TORCH_VERSION}, or build lowbit again." PARENT_SCOPE)
    return()
  endif()
  if(version VERSION_LESS "2.11" OR NOT version VERSION_LESS "2.12")
    message(WARNING "lowbit is tested with libtorch 2.11; found ${version} at ${root}.")
  endif()

  add_library(lowbit::torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(lowbit::torch SYSTEM INTERFACE "${root}/include" "${root}/include/torch/csrc/api/include")
  set(libs "${root}/lib/libtorch_cpu.so" "${root}/lib/libc10.so")
  # CUDA kernels register themselves when libtorch_cuda is loaded; the linker would drop a library without referenced
  # symbols, hence --no-as-needed. A CPU build leaves it out, and starts a second sooner.
  if(LOWBIT_HAS_CUDA AND EXISTS "${root}/lib/libtorch_cuda.so")
    list(APPEND libs "-Wl,--no-as-needed,${root}/lib/libtorch_cuda.so,--as-needed" "${root}/lib/libc10_cuda.so")
  endif()
  target_link_libraries(lowbit::torch INTERFACE ${libs})
  set(LOWBIT_TORCH_ROOT "${root}" CACHE INTERNAL "libtorch in use")
  set(LOWBIT_TORCH_VERSION "${version}" CACHE INTERNAL "libtorch's version")
  message(STATUS "lowbit: libtorch ${version} at ${root}")
endfunction()

# The first of `hints` that holds a libtorch, or nothing.
function(lowbit_first_torch result hints)
  set(${result} "" PARENT_SCOPE)
  foreach(hint IN LISTS hints)
    if(EXISTS "${hint}/include/ATen/ATen.h" AND EXISTS "${hint}/lib/libtorch_cpu.so")
      get_filename_component(root "${hint}" ABSOLUTE)
      set(${result} "${root}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()
