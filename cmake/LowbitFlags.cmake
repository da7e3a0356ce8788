# lowbit_target(NAME): what every target of the project is compiled with. Target-scoped; consumers see C++20 only.
function(lowbit_target name)
  target_compile_features(${name} PUBLIC cxx_std_20)
  set_target_properties(${name} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON)
  if(LOWBIT_HAS_CUDA)
    set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${LOWBIT_CUDA_ARCHITECTURES}")
    # Not CUDA_STANDARD: CMake 3.25 and earlier know no CUDA20.
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
  # -ffp-contract=off: results are defined to the bit, a*b+c is fused only where the code says fma.
  target_compile_options(${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -ffp-contract=off>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${LOWBIT_WERROR}>>:-Werror>)
  if(LOWBIT_SANITIZE)
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LOWBIT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all>)
    target_link_options(${name} PRIVATE -fsanitize=${LOWBIT_SANITIZE})
  endif()
endfunction()
