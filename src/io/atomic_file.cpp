#include "io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

#include "lowbit/error.h"

namespace lowbit::io {

namespace {

std::string folder_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  static std::atomic<unsigned> counter{0};
  const std::string stem = path.substr(path.find_last_of('/') + 1);
  do {  // a name left by a killed process with our id is passed over, never overwritten
    temporary_ = folder_of(path) + "/." + stem + "." + std::to_string(::getpid()) + "-" +
                 std::to_string(counter++) + ".tmp";
    fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) {
    temporary_.clear();
    fail("create");
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_) {}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* operation) const { throw IoError(path_, operation, errno); }

void AtomicFile::write(const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd_, bytes, std::min(size, size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write");
    bytes += written;
    size -= static_cast<size_t>(written);
    size_ += static_cast<size_t>(written);
  }
}

void AtomicFile::append(const AtomicFile& source, size_t offset, size_t size) {
  std::vector<char> buffer(std::min(size, size_t{4} << 20));
  while (size > 0) {
    const ssize_t got = ::pread(source.fd_, buffer.data(), std::min(size, buffer.size()),
                                static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = EIO;  // our own temporary file cannot end early unless somebody cut it
    if (got <= 0) fail("read back");
    write(buffer.data(), static_cast<size_t>(got));
    offset += static_cast<size_t>(got);
    size -= static_cast<size_t>(got);
  }
}

void AtomicFile::seal() {
  if (fd_ < 0) return;
  if (::fsync(fd_) != 0) fail("fsync");
  // Some file systems report a full disk only here.
  if (::close(std::exchange(fd_, -1)) != 0) fail("close");
}

void AtomicFile::commit(const std::string& final_path) {
  seal();
  if (::rename(temporary_.c_str(), final_path.c_str()) != 0) fail("rename");
  temporary_.clear();
  // The new name is durable once its folder is; a file system that cannot sync folders has nothing
  // better to offer.
  const int folder = ::open(folder_of(final_path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
}

}  // namespace lowbit::io
