# Install and export rules; find_package(lowbit) works from the install tree and from the build tree.
