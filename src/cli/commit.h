// The commit that this program was built from.
#pragma once

namespace lowbit::cli {

/// `git describe --always --dirty`; empty when the sources stood in no repository.
const char* commit();

}  // namespace lowbit::cli
