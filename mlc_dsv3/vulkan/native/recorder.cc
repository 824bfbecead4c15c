#include "recorder.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>

#include "kernel.h"

namespace mlc_vulkan {
namespace {

// The first batch after the host has waited is submitted when it has so many launches, and later ones when they have so
// many or when the host waits again: a decoding step takes two submissions, and the device works on its first kernels
// while the rest is recorded.
constexpr int kEagerBatch = 24;
constexpr int kLargestBatch = 2048;
constexpr VkDeviceSize kStagingChunk = VkDeviceSize{8} << 20;
constexpr size_t kStagingChunks = 4;
// Commands may carry so many bytes in themselves.
constexpr VkDeviceSize kInlineUpload = 4096;
constexpr uint32_t kQueries = 4096;

constexpr VkPipelineStageFlags kStages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
constexpr VkAccessFlags kWrites = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
constexpr VkAccessFlags kReads = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;

bool intersect(const std::vector<VkDeviceAddress>& a, const std::vector<VkDeviceAddress>& b) {
  for (VkDeviceAddress each : a)
    if (std::find(b.begin(), b.end(), each) != b.end()) return true;
  return false;
}

void remember(std::vector<VkDeviceAddress>& known, const std::vector<VkDeviceAddress>& more) {
  for (VkDeviceAddress each : more)
    if (std::find(known.begin(), known.end(), each) == known.end()) known.push_back(each);
}

}  // namespace

Recorder::Recorder(Device& device) : device_(device) {
  const auto& vk = device.vk();
  VkCommandPoolCreateInfo pool{};
  pool.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO;
  pool.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  pool.queueFamilyIndex = device.queue_family();
  device.check(vk.vkCreateCommandPool(device.handle(), &pool, nullptr, &pool_), "making a command pool");
  VkSemaphoreTypeCreateInfo type{};
  type.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO;
  type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
  VkSemaphoreCreateInfo semaphore{};
  semaphore.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO;
  semaphore.pNext = &type;
  device.check(vk.vkCreateSemaphore(device.handle(), &semaphore, nullptr, &timeline_), "making a semaphore");
}

uint64_t Recorder::completed() noexcept {
  if (completed_ < submitted_) {
    uint64_t value = 0;
    if (device_.vk().vkGetSemaphoreCounterValue(device_.handle(), timeline_, &value) == VK_SUCCESS) completed_ = value;
  }
  return completed_;
}

VkCommandBuffer Recorder::commands() {
  if (open_ != VK_NULL_HANDLE) return open_;
  const auto& vk = device_.vk();
  uint64_t done = completed();
  auto unused = std::find_if(ring_.begin(), ring_.end(), [&](const Commands& c) { return c.used_in <= done; });
  if (unused == ring_.end()) {
    VkCommandBufferAllocateInfo info{};
    info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO;
    info.commandPool = pool_;
    info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    info.commandBufferCount = 1;
    VkCommandBuffer made;
    device_.check(vk.vkAllocateCommandBuffers(device_.handle(), &info, &made), "making a command buffer");
    unused = ring_.insert(ring_.end(), {made, 0});
  }
  VkCommandBufferBeginInfo begin{};
  begin.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
  begin.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  device_.check(vk.vkBeginCommandBuffer(unused->buffer, &begin), "beginning a batch");
  unused->used_in = current();
  recorded_ = 0;
  return open_ = unused->buffer;
}

void Recorder::barrier(VkPipelineStageFlags to_stages, VkAccessFlags to_access) {
  VkMemoryBarrier memory{};
  memory.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  memory.srcAccessMask = kWrites;
  memory.dstAccessMask = to_access;
  device_.vk().vkCmdPipelineBarrier(commands(), kStages, to_stages, 0, 1, &memory, 0, nullptr, 0, nullptr);
}

void Recorder::order(const std::vector<VkDeviceAddress>& read, const std::vector<VkDeviceAddress>& written) {
  if (barrier_due_ || intersect(read, writes_) || intersect(written, writes_) || intersect(written, reads_)) {
    barrier(kStages, kReads | kWrites);
    statistics_.barriers++;
    reads_.clear();
    writes_.clear();
    barrier_due_ = false;
  }
  remember(reads_, read);
  remember(writes_, written);
}

void Recorder::launch(const Kernel& kernel, VkPipeline pipeline, VkPipelineLayout layout, std::vector<uint8_t>& push,
                      const std::vector<VkDeviceAddress>& read, const std::vector<VkDeviceAddress>& written,
                      const std::array<int64_t, 3>& grid) {
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return;
  const auto& vk = device_.vk();
  const Properties& limits = device_.properties;
  if (grid[1] > limits.max_grid[1] || grid[2] > limits.max_grid[2])
    TVM_FFI_THROW(ValueError) << "kernel " << kernel.name << " wants a grid of " << grid[0] << " x " << grid[1]
                              << " x " << grid[2] << " blocks, and " << limits.name << " has at most "
                              << limits.max_grid[1] << " and " << limits.max_grid[2] << " in the last two axes";
  std::vector<VkDeviceAddress> reads, writes;
  for (VkDeviceAddress each : read) reads.push_back(device_.memory().owner(each));
  for (VkDeviceAddress each : written) writes.push_back(device_.memory().owner(each));
  // A long first axis goes in several dispatches, each told where it starts.
  for (int64_t start = 0; start < grid[0]; start += limits.max_grid[0]) {
    if (profiling_ && queries_used_ + 2 > kQueries) {
      finish();
      read_timings();
    }
    uint32_t blocks = static_cast<uint32_t>(std::min(grid[0] - start, limits.max_grid[0]));
    uint32_t first = static_cast<uint32_t>(start);
    std::memcpy(push.data() + kernel.block_offset, &first, sizeof first);
    VkDeviceAddress slot = kernel.indirect ? argument_slot(push.size()) : 0;
    if (kernel.indirect) {
      // It may submit what is recorded, and so comes before this kernel's commands.
      upload(slot, push.data(), push.size());
      order({arguments_}, {});
    }
    if (start == 0) {
      order(reads, writes);
    } else {
      // What was recorded in between may have forgotten them; parts of one grid need no barrier.
      remember(reads_, reads);
      remember(writes_, writes);
    }
    VkCommandBuffer to = commands();
    vk.vkCmdBindPipeline(to, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    if (kernel.indirect) {
      vk.vkCmdPushConstants(to, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof slot, &slot);
    } else if (!push.empty()) {
      vk.vkCmdPushConstants(to, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, static_cast<uint32_t>(push.size()),
                            push.data());
    }
    if (profiling_) vk.vkCmdWriteTimestamp(to, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, queries_, queries_used_++);
    vk.vkCmdDispatch(to, blocks, static_cast<uint32_t>(grid[1]), static_cast<uint32_t>(grid[2]));
    if (profiling_) {
      vk.vkCmdWriteTimestamp(to, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, queries_, queries_used_++);
      timed_.push_back(kernel.name);
    }
    recorded_++;
    statistics_.launches++;
  }
  if (recorded_ >= (eager_ ? kEagerBatch : kLargestBatch)) {
    submit();
    eager_ = false;
  }
}

VkDeviceAddress Recorder::argument_slot(VkDeviceSize size) {
  if (arguments_ == 0) arguments_ = device_.memory().allocate(kMostArguments);
  if (arguments_filled_ + size > kMostArguments) arguments_filled_ = 0;
  VkDeviceAddress slot = arguments_ + arguments_filled_;
  arguments_filled_ += (size + 15) / 16 * 16;
  return slot;
}

Range Recorder::staging(VkDeviceSize size) {
  if (staging_.empty() || staging_[staging_at_].filled + size > staging_[staging_at_].block.size) {
    if (!staging_.empty()) staging_at_ = (staging_at_ + 1) % kStagingChunks;
    if (staging_at_ == staging_.size()) staging_.push_back({device_.memory().make_staging(kStagingChunk), 0, 0});
    if (staging_[staging_at_].used_in == current()) submit();
    wait(staging_[staging_at_].used_in);
    staging_[staging_at_].filled = 0;
  }
  Staging& chunk = staging_[staging_at_];
  Range range{chunk.block.buffer, chunk.filled, chunk.block.mapped + chunk.filled};
  chunk.filled += (size + 63) / 64 * 64;
  chunk.used_in = current();
  return range;
}

void Recorder::upload(VkDeviceAddress to, const void* from, VkDeviceSize size) {
  const auto& vk = device_.vk();
  Range target = device_.memory().find(to, size);
  VkDeviceAddress owner = device_.memory().owner(to);
  statistics_.uploaded += size;
  if (size <= kInlineUpload && size % 4 == 0 && target.offset % 4 == 0) {
    order({}, {owner});
    if (size) vk.vkCmdUpdateBuffer(commands(), target.buffer, target.offset, size, from);
    recorded_++;
    return;
  }
  for (VkDeviceSize done = 0; done < size;) {
    VkDeviceSize part = std::min(size - done, kStagingChunk);
    Range source = staging(part);
    // Behind `staging` and `submit`, which forget what a batch has written.
    order({}, {owner});
    std::memcpy(source.mapped, static_cast<const uint8_t*>(from) + done, part);
    VkBufferCopy region{source.offset, target.offset + done, part};
    vk.vkCmdCopyBuffer(commands(), source.buffer, target.buffer, 1, &region);
    recorded_++;
    done += part;
    // A long upload runs while its next part is being staged.
    if (done < size) submit();
  }
}

void Recorder::download(void* to, VkDeviceAddress from, VkDeviceSize size) {
  Range source = device_.memory().find(from, size);
  statistics_.downloaded += size;
  if (source.mapped) {
    finish();
    std::memcpy(to, source.mapped, size);
    return;
  }
  for (VkDeviceSize done = 0; done < size;) {
    VkDeviceSize part = std::min(size - done, kStagingChunk);
    Range staged = staging(part);
    order({device_.memory().owner(from)}, {});
    VkBufferCopy region{source.offset + done, staged.offset, part};
    device_.vk().vkCmdCopyBuffer(commands(), source.buffer, staged.buffer, 1, &region);
    finish();
    std::memcpy(static_cast<uint8_t*>(to) + done, staged.mapped, part);
    done += part;
  }
}

void Recorder::copy(VkDeviceAddress to, VkDeviceAddress from, VkDeviceSize size) {
  if (size == 0) return;
  Range source = device_.memory().find(from, size), target = device_.memory().find(to, size);
  order({device_.memory().owner(from)}, {device_.memory().owner(to)});
  VkBufferCopy region{source.offset, target.offset, size};
  device_.vk().vkCmdCopyBuffer(commands(), source.buffer, target.buffer, 1, &region);
  recorded_++;
}

void Recorder::submit() {
  if (open_ == VK_NULL_HANDLE) return;
  const auto& vk = device_.vk();
  // What the host reads after waiting has to be visible to it.
  barrier(kStages | VK_PIPELINE_STAGE_HOST_BIT, kReads | kWrites | VK_ACCESS_HOST_READ_BIT);
  reads_.clear();
  writes_.clear();
  barrier_due_ = false;
  VkCommandBuffer batch = open_;
  open_ = VK_NULL_HANDLE;
  device_.check_commands(vk.vkEndCommandBuffer(batch), "ending a batch");
  uint64_t value = submitted_ + 1;
  VkTimelineSemaphoreSubmitInfo timeline{};
  timeline.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO;
  timeline.signalSemaphoreValueCount = 1;
  timeline.pSignalSemaphoreValues = &value;
  VkSubmitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO;
  info.pNext = &timeline;
  info.commandBufferCount = 1;
  info.pCommandBuffers = &batch;
  info.signalSemaphoreCount = 1;
  info.pSignalSemaphores = &timeline_;
  device_.check_commands(vk.vkQueueSubmit(device_.queue(), 1, &info, VK_NULL_HANDLE), "submitting a batch");
  submitted_ = value;
  statistics_.submissions++;
}

void Recorder::wait(uint64_t batch) {
  if (batch <= completed_) return;
  VkSemaphoreWaitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO;
  info.semaphoreCount = 1;
  info.pSemaphores = &timeline_;
  info.pValues = &batch;
  device_.check_commands(device_.vk().vkWaitSemaphores(device_.handle(), &info, UINT64_MAX), "running kernels");
  completed_ = batch;
}

void Recorder::finish() {
  submit();
  wait(submitted_);
  eager_ = true;
}

std::vector<Timing> Recorder::profile(bool on) {
  finish();
  if (profiling_) read_timings();
  std::vector<Timing> found;
  found.swap(timings_);
  profiling_ = on && device_.properties.timestamp_period > 0;
  if (profiling_) {
    if (queries_ == VK_NULL_HANDLE) {
      VkQueryPoolCreateInfo info{};
      info.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO;
      info.queryType = VK_QUERY_TYPE_TIMESTAMP;
      info.queryCount = kQueries;
      device_.check(device_.vk().vkCreateQueryPool(device_.handle(), &info, nullptr, &queries_), "making queries");
    }
    queries_used_ = kQueries;
    read_timings();
  }
  return found;
}

void Recorder::read_timings() {
  const auto& vk = device_.vk();
  std::vector<uint64_t> ticks(2 * timed_.size());
  if (!timed_.empty())
    device_.check(vk.vkGetQueryPoolResults(device_.handle(), queries_, 0, static_cast<uint32_t>(ticks.size()),
                                           ticks.size() * sizeof(uint64_t), ticks.data(), sizeof(uint64_t),
                                           VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
                  "reading timings");
  for (size_t i = 0; i < timed_.size(); i++)
    timings_.push_back(
        {timed_[i], static_cast<double>(ticks[2 * i + 1] - ticks[2 * i]) * device_.properties.timestamp_period});
  timed_.clear();
  vk.vkCmdResetQueryPool(commands(), queries_, 0, kQueries);
  queries_used_ = 0;
}

}  // namespace mlc_vulkan
