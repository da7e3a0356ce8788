#include "lowbit/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "lowbit/error.h"

namespace lowbit::io {

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw IoError(path, "open", errno);
  struct stat info {};
  int error = 0;
  if (::fstat(fd, &info) != 0) {
    error = errno;
  } else if (S_ISDIR(info.st_mode)) {
    error = EISDIR;
  } else if (!S_ISREG(info.st_mode)) {
    error = ENODEV;  // a pipe or a device has no size to check numbers against
  }
  if (error != 0) {
    ::close(fd);
    throw IoError(path, "open", error);
  }
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->size_ = static_cast<size_t>(info.st_size);
  if (file->size_ > 0) {
    // Private and writable: a tensor over the mapping may be changed in memory; the file is not.
    void* address =
        ::mmap(nullptr, file->size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    error = address == MAP_FAILED ? errno : 0;
    if (error == 0) file->data_ = static_cast<const std::byte*>(address);
  }
  ::close(fd);  // the mapping outlives the descriptor
  if (error != 0) throw IoError(path, "mmap", error);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(size_t offset, size_t length) const noexcept {
  if (data_ == nullptr || length == 0 || offset >= size_) return;
  length = std::min(length, size_ - offset);
  // Whole pages, rounded outwards: a neighbour's page that goes too is read again from the file
  // when it is touched.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page;
  ::madvise(const_cast<std::byte*>(data_) + begin, offset + length - begin, MADV_DONTNEED);
}

}  // namespace lowbit::io
