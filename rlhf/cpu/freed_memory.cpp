// Memory for torch's large tensors on the CPU: freed blocks are joined and used again; see freed_memory.py.
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace {

constexpr size_t kAlignment = 64, kSmallest = 1 << 16;  // bytes; what is smaller is left to malloc

// A range of addresses, cut into blocks that are used or are gaps; no two gaps are neighbours.
class Arena final : public c10::Allocator {
 public:
  Arena(char* start, size_t size, c10::Allocator* others) : start_(start), size_(size), others_(others) {
    blocks_[start] = size;
    gaps_.insert({size, start});
  }

  c10::DataPtr allocate(size_t size) override {
    void* block = size < kSmallest ? nullptr : take((size + kAlignment - 1) / kAlignment * kAlignment);
    if (!block) return others_->allocate(size);
    c10::profiledCPUMemoryReporter().New(block, size);
    return {block, block, raw_deleter(), c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override;

  void copy_data(void* to, const void* from, std::size_t size) const override { default_copy_data(to, from, size); }

  // Also gets what malloc gave: torch frees some blocks by the allocator of the day.
  void release(void* block) {
    auto* address = static_cast<char*>(block);
    if (address < start_ || address >= start_ + size_) return others_->raw_deallocate(block);
    c10::profiledCPUMemoryReporter().Delete(block);
    give(address);
  }

  std::mutex mutex;

 private:
  // The smallest gap that is large enough, the first of several; nullptr if there is none.
  char* take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    auto gap = gaps_.lower_bound({size, nullptr});
    if (gap == gaps_.end()) return nullptr;
    auto [whole, block] = *gap;
    gaps_.erase(gap);
    blocks_[block] = size;
    if (whole > size) {
      blocks_[block + size] = whole - size;
      gaps_.insert({whole - size, block + size});
    }
    return block;
  }

  void give(char* address) {
    std::lock_guard<std::mutex> lock(mutex);
    auto block = blocks_.find(address);
    auto next = std::next(block);
    if (next != blocks_.end() && gaps_.erase({next->second, next->first})) {
      block->second += next->second;
      blocks_.erase(next);
    }
    if (block != blocks_.begin()) {
      auto before = std::prev(block);
      if (gaps_.erase({before->second, before->first})) {
        before->second += block->second;
        blocks_.erase(block);
        block = before;
      }
    }
    gaps_.insert({block->second, block->first});
  }

  char* const start_;
  const size_t size_;
  c10::Allocator* const others_;
  std::map<char*, size_t> blocks_;           // address and size of each block
  std::set<std::pair<size_t, char*>> gaps_;  // size and address of those that nobody uses
};

Arena* arena;  // is never destroyed: tensors outlive everything

void release(void* block) { arena->release(block); }

c10::DeleterFnPtr Arena::raw_deleter() const { return &::release; }

}  // namespace

// Reserves addresses for `size` bytes, which become memory where they are written, and lets torch use them.
extern "C" bool keep_freed_tensors(size_t size) {
  void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return false;
  arena = new Arena(static_cast<char*>(start), size, c10::GetCPUAllocator());
  auto lock = [] { arena->mutex.lock(); };
  auto unlock = [] { arena->mutex.unlock(); };
  pthread_atfork(lock, unlock, unlock);
  c10::SetCPUAllocator(arena);
  return true;
}
