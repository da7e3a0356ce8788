# cmake -DSOURCE=DIR -DOUTPUT=FILE -P commit.cmake: writes the source that names the commit, when it has changed.
find_package(Git QUIET)
set(commit "")
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C "${SOURCE}" rev-parse --show-toplevel
    OUTPUT_VARIABLE top OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  file(REAL_PATH "${SOURCE}" source)
  if(top STREQUAL source)  # not a repository that only holds a copy of this one
    execute_process(COMMAND ${GIT_EXECUTABLE} -C "${SOURCE}" describe --always --dirty
      OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT "#include \"cli/commit.h\"

namespace lowbit::cli {

const char* commit() { return \"@commit@\"; }

}  // namespace lowbit::cli
")
