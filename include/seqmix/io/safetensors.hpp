// Reading and writing safetensors files: named tensors and a few strings about them.
//
//   Format    8 bytes: size of the header, little-endian; the header, JSON: {"name": {"dtype", "shape", "data_offsets"},
//             ..., "__metadata__": {"key": "value", ...}}; the numbers, little-endian and row-major, in one piece
//   Source    the description in the README of huggingface/safetensors
//   Differs   tensors of the 4-, 6- and 8-bit floating-point types and of complex numbers are refused
//
// Files come from strangers. Everything that the header says is checked against the file before it is used, and whatever
// doesn't fit is a SafetensorsError that names the file and the tensor. Needs nlohmann-json.
#pragma once

#include <algorithm>
#include <bit>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/view.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#define SEQMIX_HAVE_MMAP
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace seqmix {

/// What is wrong with a file of tensors, and in which file and tensor: "file: tensor "name": problem".
class SafetensorsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The types of numbers that a file may hold.
enum class Dtype { boolean, u8, i8, u16, i16, u32, i32, u64, i64, f16, bf16, f32, f64 };

/// The name of a type in the file format, "F32".
inline std::string_view dtype_name(Dtype dtype) {
  constexpr std::string_view names[] = {"BOOL", "U8",  "I8",  "U16",  "I16", "U32", "I32",
                                        "U64",  "I64", "F16", "BF16", "F32", "F64"};
  return names[static_cast<std::size_t>(dtype)];
}

/// Bytes of one number.
inline Index dtype_size(Dtype dtype) {
  constexpr Index sizes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
  return sizes[static_cast<std::size_t>(dtype)];
}

/// Whether the type is one of the floating-point types.
inline bool is_floating(Dtype dtype) { return dtype >= Dtype::f16; }

/// A tensor of a file, where it lies. Its bytes live as long as the file object does (also after that was moved).
struct SafetensorsTensor {
  Dtype dtype = Dtype::u8;
  std::vector<Index> shape;
  std::span<const std::byte> bytes;  // little-endian, row-major, not necessarily aligned

  /// Number of elements; 1 where there are no dimensions.
  Index size() const { return Index(bytes.size()) / dtype_size(dtype); }
};

namespace internal {

/// "file: tensor "name": problem", with whatever comes from the file cut to a readable length.
[[noreturn]] inline void throw_safetensors(std::string_view file, std::string_view tensor, std::string_view problem) {
  constexpr std::size_t longest = 200;
  std::string message(file);
  message += ": ";
  if (!tensor.empty()) {
    message.append("tensor \"").append(tensor.substr(0, longest)).append(tensor.size() > longest ? "...\": " : "\": ");
  }
  message.append(problem.substr(0, 2 * longest));
  throw SafetensorsError(message);
}

inline std::string shape_text(std::span<const Index> shape) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < shape.size() && axis < 8; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(shape[axis]);
  }
  return text + (shape.size() > 8 ? ", ...]" : "]");
}

/// The little-endian number at `data`, which need not be aligned.
template <class T>
T load_little(const std::byte* data) {
  std::byte bytes[sizeof(T)];
  std::memcpy(bytes, data, sizeof(T));
  if constexpr (std::endian::native == std::endian::big) std::reverse(bytes, bytes + sizeof(T));
  return std::bit_cast<T>(bytes);
}

/// Appends `value` in little-endian order.
template <class T, class Bytes>
void append_little(Bytes& bytes, T value) {
  std::byte raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  if constexpr (std::endian::native == std::endian::big) std::reverse(raw, raw + sizeof(T));
  for (const std::byte byte : raw) bytes.push_back(byte);
}

/// IEEE binary16 to binary32, exact. The exponent is rebiased by a product, which also normalises subnormal numbers.
inline float half_to_float(std::uint16_t bits) {
  const std::uint32_t magnitude = std::uint32_t(bits & 0x7FFFu) << 13;
  float value = std::bit_cast<float>(magnitude) * 0x1p112f;
  if ((bits & 0x7C00u) == 0x7C00u) value = std::bit_cast<float>(magnitude | 0x7F800000u);  // infinity, NaN
  return (bits & 0x8000u) != 0 ? -value : value;
}

/// bfloat16 to binary32: the upper half of it.
inline float bfloat16_to_float(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

/// The bytes of a file, mapped into memory where the system can do that.
class FileBytes {
 public:
  FileBytes() = default;
  explicit FileBytes(std::vector<std::byte> bytes) : owned_(std::move(bytes)), data_(owned_) {}
  FileBytes(FileBytes&& other) noexcept { swap(other); }
  FileBytes& operator=(FileBytes&& other) noexcept {
    FileBytes(std::move(other)).swap(*this);
    return *this;
  }
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;
  ~FileBytes() {
#ifdef SEQMIX_HAVE_MMAP
    if (mapped_ != nullptr) ::munmap(mapped_, data_.size());
#endif
  }

  std::span<const std::byte> get() const { return data_; }

  /// The file at `path`, which must not shrink as long as the result lives.
  static FileBytes open(const std::string& path) {
#ifdef SEQMIX_HAVE_MMAP
    FileBytes result;
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) throw_safetensors(path, "", std::string("can't be opened: ") + std::strerror(errno));
    struct stat status = {};
    const bool regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    const std::size_t size = regular ? std::size_t(status.st_size) : 0;
    void* mapped = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
    ::close(descriptor);
    if (!regular) throw_safetensors(path, "", "is not a regular file");
    if (mapped == MAP_FAILED) throw_safetensors(path, "", "can't be mapped into memory");
    result.mapped_ = mapped;
    result.data_ = {static_cast<const std::byte*>(mapped), size};
    return result;
#else
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
    if (!file) throw_safetensors(path, "", "can't be opened");
    std::vector<std::byte> bytes;
    std::byte piece[1 << 16];
    for (std::size_t count; (count = std::fread(piece, 1, sizeof(piece), file.get())) > 0;) {
      bytes.insert(bytes.end(), piece, piece + count);
    }
    if (std::ferror(file.get()) != 0) throw_safetensors(path, "", "can't be read");
    return FileBytes(std::move(bytes));
#endif
  }

 private:
  void swap(FileBytes& other) noexcept {
    std::swap(owned_, other.owned_);  // moves no element, so data_ stays valid
    std::swap(data_, other.data_);
    std::swap(mapped_, other.mapped_);
  }

  std::vector<std::byte> owned_;
  std::span<const std::byte> data_;
  void* mapped_ = nullptr;
};

/// What the header says of one tensor.
struct HeaderEntry {
  std::string dtype;
  std::vector<Index> shape;
  std::vector<Index> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

/// Takes the events of the JSON parser and accepts exactly the structure of a header. Working on events rather than on a
/// parsed document bounds memory and depth, and sees names that occur twice.
class HeaderParser : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderParser(std::string_view file) : file_(file) {}

  std::map<std::string, HeaderEntry, std::less<>> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("a boolean"); }
  bool number_float(number_float_t, const string_t&) override { return value("a fraction or a number out of range"); }
  bool binary(binary_t&) override { return value("binary data"); }
  bool number_integer(number_integer_t) override { return value("a negative number"); }
  bool number_unsigned(number_unsigned_t number) override {
    if (place_ != Place::list) return value("a number");
    if (number > std::uint64_t(std::numeric_limits<Index>::max())) return value("a number out of range");
    list_->push_back(Index(number));
    return true;
  }
  bool string(string_t& text) override {
    if (place_ == Place::metadata) {
      metadata[key_] = std::move(text);
    } else if (place_ == Place::tensor && key_ == "dtype") {
      entry_->dtype = std::move(text);
    } else {
      return value("a string");
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (place_ == Place::start) {
      place_ = Place::header;
    } else if (place_ == Place::header) {
      place_ = name_ == "__metadata__" ? Place::metadata : Place::tensor;
      if (place_ == Place::tensor) entry_ = &entries[name_];
    } else {
      return value("an object");
    }
    return true;
  }
  bool end_object() override {
    if (place_ == Place::tensor && !(entry_->has_dtype && entry_->has_shape && entry_->has_offsets)) {
      throw_safetensors(file_, name_, "the header lacks its dtype, shape or data_offsets");
    }
    if (place_ != Place::header) name_.clear();
    place_ = Place::header;
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ == Place::tensor && key_ == "shape") {
      list_ = &entry_->shape;
    } else if (place_ == Place::tensor && key_ == "data_offsets") {
      list_ = &entry_->offsets;
    } else {
      return value("an array");
    }
    place_ = Place::list;
    return true;
  }
  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }
  bool key(string_t& text) override {
    bool repeated = false;
    if (place_ == Place::header) {
      name_ = std::move(text);
      repeated = name_ == "__metadata__" ? std::exchange(has_metadata_, true) : entries.contains(name_);
    } else if (place_ == Place::metadata) {
      key_ = std::move(text);
      repeated = metadata.contains(key_);
    } else {
      key_ = std::move(text);
      bool* const seen = key_ == "dtype"          ? &entry_->has_dtype
                         : key_ == "shape"        ? &entry_->has_shape
                         : key_ == "data_offsets" ? &entry_->has_offsets
                                                  : nullptr;
      if (seen == nullptr) throw_safetensors(file_, name_, "unknown field \"" + key_ + "\" in the header");
      repeated = std::exchange(*seen, true);
    }
    if (repeated) throw_safetensors(file_, name_, "occurs twice in the header");
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) override {
    throw_safetensors(file_, name_, std::string("the header is not valid JSON: ") + error.what());
  }

 private:
  enum class Place { start, header, metadata, tensor, list };

  /// A value that is not allowed where it stands.
  [[noreturn]] bool value(const char* kind) const {
    const bool inside = place_ == Place::metadata || place_ == Place::tensor || place_ == Place::list;
    if (place_ == Place::start) throw_safetensors(file_, "", "the header is not a JSON object");
    throw_safetensors(
        file_, name_,
        std::string("unexpected ") + kind + " in the header" + (inside ? ", in \"" + key_ + "\"" : std::string()));
  }

  std::string_view file_;
  Place place_ = Place::start;
  std::string name_, key_;
  HeaderEntry* entry_ = nullptr;
  std::vector<Index>* list_ = nullptr;
  bool has_metadata_ = false;
};

template <class Stored, class T>
void convert_integers(const SafetensorsTensor& tensor, T* result, std::string_view file, std::string_view name) {
  for (Index i = 0; i < tensor.size(); ++i) {
    const auto value = load_little<Stored>(tensor.bytes.data() + i * Index(sizeof(Stored)));
    if constexpr (std::integral<T> && !std::same_as<T, bool>) {
      if (!std::in_range<T>(value)) throw_safetensors(file, name, "holds a number too large for the type asked for");
    }
    result[i] = static_cast<T>(value);
  }
}

template <class Stored, std::floating_point T>
void convert_floats(const SafetensorsTensor& tensor, T* result, float (*decode)(std::uint16_t) = nullptr) {
  if constexpr (std::same_as<Stored, T> && std::endian::native == std::endian::little) {
    if (!tensor.bytes.empty()) std::memcpy(result, tensor.bytes.data(), tensor.bytes.size());
  } else {
    for (Index i = 0; i < tensor.size(); ++i) {
      const auto value = load_little<Stored>(tensor.bytes.data() + i * Index(sizeof(Stored)));
      if constexpr (std::integral<Stored>) {
        result[i] = static_cast<T>(decode(value));
      } else {
        result[i] = static_cast<T>(value);
      }
    }
  }
}

}  // namespace internal

/// A safetensors file, mapped into memory and checked. Numbers are read from it, and converted, on demand; reading is
/// const and may happen in several threads. The file must not be changed as long as the object lives.
class SafetensorsFile {
 public:
  /// Opens and checks the file at `path`. O(size of the header). Throws SafetensorsError if the file can't be read or
  /// isn't a valid safetensors file.
  explicit SafetensorsFile(const std::string& path) : SafetensorsFile(internal::FileBytes::open(path), path) {}

  /// The same for a file held in memory; `name` stands in messages.
  SafetensorsFile(std::vector<std::byte> bytes, std::string name)
      : SafetensorsFile(internal::FileBytes(std::move(bytes)), std::move(name)) {}

  /// The path, or the name given, for messages.
  const std::string& path() const { return path_; }

  /// The strings of the file's "__metadata__"; empty where there is none.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensors' names, in alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  /// The tensor `name`. Throws SafetensorsError if the file has none.
  const SafetensorsTensor& tensor(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) internal::throw_safetensors(path_, name, "missing from the file");
    return found->second;
  }

  /// All elements of tensor `name`, row-major, converted to T. Floating-point numbers are rounded to T; integers are
  /// converted to a floating-point T as the language does, and to an integral T if all of them fit. Throws
  /// SafetensorsError if the file has no such tensor, if integers are asked for and it holds floating-point numbers, and
  /// if an integer doesn't fit.
  template <class T>
    requires std::is_arithmetic_v<T>
  Buffer<T> read(std::string_view name) const {
    const SafetensorsTensor& source = tensor(name);
    Buffer<T> result(std::size_t(source.size()));
    read_into(source, name, result.data());
    return result;
  }

  /// Tensor `name` as a matrix: a tensor with two dimensions as it is, a vector as one column; of more dimensions all but the
  /// last are merged into the rows. Throws as read does.
  template <std::floating_point T>
  Matrix<T> matrix(std::string_view name) const {
    const SafetensorsTensor& source = tensor(name);
    const std::span<const Index> shape = source.shape;
    Index rows = 1, columns = 1;
    if (shape.size() == 1) {
      rows = shape.front();
    } else if (!shape.empty()) {
      for (const Index size : shape.first(shape.size() - 1)) rows *= size;
      columns = shape.back();
    }
    Matrix<T> result(rows, columns);
    read_into(source, name, result.data());
    return result;
  }

  /// Tensor `name` as a vector. Throws as read does, and if more than one of its sizes differs from 1.
  template <std::floating_point T>
  Vector<T> vector(std::string_view name) const {
    const SafetensorsTensor& source = tensor(name);
    if (std::count_if(source.shape.begin(), source.shape.end(), [](Index size) { return size != 1; }) > 1) {
      internal::throw_safetensors(path_, name, "expected a vector, given shape " + internal::shape_text(source.shape));
    }
    Vector<T> result(source.size());
    read_into(source, name, result.data());
    return result;
  }

 private:
  SafetensorsFile(internal::FileBytes bytes, std::string path) : bytes_(std::move(bytes)), path_(std::move(path)) {
    constexpr std::uint64_t largest_header = 100'000'000;  // as the reference implementation has it
    const auto file = bytes_.get();
    if (file.size() < 8) internal::throw_safetensors(path_, "", "too short for a safetensors file");
    const auto header_size = internal::load_little<std::uint64_t>(file.data());
    if (header_size > file.size() - 8) {
      internal::throw_safetensors(path_, "", "the header reaches beyond the file; is it a safetensors file?");
    }
    if (header_size > largest_header) internal::throw_safetensors(path_, "", "the header is larger than 100 MB");
    const auto* const text = reinterpret_cast<const char*>(file.data() + 8);
    internal::HeaderParser header(path_);
    nlohmann::json::sax_parse(text, text + header_size, &header);
    const auto data = file.subspan(8 + std::size_t(header_size));
    for (auto& [name, entry] : header.entries) add(name, entry, data);
    check_layout(data);
    metadata_ = std::move(header.metadata);
  }

  /// Checks what the header says of one tensor against itself and the data.
  void add(const std::string& name, internal::HeaderEntry& entry, std::span<const std::byte> data) {
    SafetensorsTensor result;
    const auto dtype = dtype_named(entry.dtype);
    if (!dtype) internal::throw_safetensors(path_, name, "unknown or unsupported dtype \"" + entry.dtype + "\"");
    result.dtype = *dtype;
    if (entry.offsets.size() != 2) internal::throw_safetensors(path_, name, "data_offsets must be two numbers");
    const Index begin = entry.offsets[0], end = entry.offsets[1];
    if (begin > end) internal::throw_safetensors(path_, name, "data_offsets end before they begin");
    if (end > Index(data.size())) internal::throw_safetensors(path_, name, "data_offsets reach beyond the file");
    Index count = 1;
    for (const Index size : entry.shape) {
      if (size > 0 && count > std::numeric_limits<Index>::max() / size) {
        internal::throw_safetensors(path_, name, "shape " + internal::shape_text(entry.shape) + " is too large");
      }
      count *= size;
    }
    const Index bytes = end - begin, element = dtype_size(result.dtype);
    if (bytes % element != 0 || bytes / element != count) {
      internal::throw_safetensors(path_, name,
                                  "shape " + internal::shape_text(entry.shape) + " of " + entry.dtype +
                                      " doesn't fill its " + std::to_string(bytes) + " bytes");
    }
    result.shape = std::move(entry.shape);
    result.bytes = data.subspan(std::size_t(begin), std::size_t(bytes));
    tensors_.emplace(name, std::move(result));
  }

  /// Tensors must cover the data without overlaps and gaps.
  void check_layout(std::span<const std::byte> data) const {
    std::vector<std::pair<std::span<const std::byte>, std::string_view>> pieces;
    for (const auto& [name, tensor] : tensors_) pieces.emplace_back(tensor.bytes, name);
    const auto place = [&](const auto& piece) {
      return std::pair(piece.first.data() - data.data(), piece.first.size());
    };
    std::sort(pieces.begin(), pieces.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
    Index end = 0;
    for (const auto& piece : pieces) {
      const Index begin = place(piece).first;
      if (begin < end) internal::throw_safetensors(path_, piece.second, "overlaps another tensor");
      if (begin > end) internal::throw_safetensors(path_, piece.second, "bytes before it belong to no tensor");
      end = begin + Index(piece.first.size());
    }
    if (end != Index(data.size())) internal::throw_safetensors(path_, "", "bytes at its end belong to no tensor");
  }

  static const Dtype* dtype_named(std::string_view name) {
    static constexpr Dtype all[] = {Dtype::boolean, Dtype::u8,  Dtype::i8,  Dtype::u16, Dtype::i16,
                                    Dtype::u32,     Dtype::i32, Dtype::u64, Dtype::i64, Dtype::f16,
                                    Dtype::bf16,    Dtype::f32, Dtype::f64};
    for (const Dtype& dtype : all) {
      if (dtype_name(dtype) == name) return &dtype;
    }
    return nullptr;
  }

  template <class T>
  void read_into(const SafetensorsTensor& source, std::string_view name, T* result) const {
    if constexpr (!std::floating_point<T>) {
      if (is_floating(source.dtype)) {
        internal::throw_safetensors(path_, name, "expected integers, given " + std::string(dtype_name(source.dtype)));
      }
    }
    switch (source.dtype) {
      case Dtype::boolean:
        for (Index i = 0; i < source.size(); ++i) result[i] = T(source.bytes[std::size_t(i)] != std::byte(0));
        return;
      case Dtype::u8:
        return internal::convert_integers<std::uint8_t>(source, result, path_, name);
      case Dtype::i8:
        return internal::convert_integers<std::int8_t>(source, result, path_, name);
      case Dtype::u16:
        return internal::convert_integers<std::uint16_t>(source, result, path_, name);
      case Dtype::i16:
        return internal::convert_integers<std::int16_t>(source, result, path_, name);
      case Dtype::u32:
        return internal::convert_integers<std::uint32_t>(source, result, path_, name);
      case Dtype::i32:
        return internal::convert_integers<std::int32_t>(source, result, path_, name);
      case Dtype::u64:
        return internal::convert_integers<std::uint64_t>(source, result, path_, name);
      case Dtype::i64:
        return internal::convert_integers<std::int64_t>(source, result, path_, name);
      default:
        break;
    }
    if constexpr (std::floating_point<T>) {
      switch (source.dtype) {
        case Dtype::f16:
          return internal::convert_floats<std::uint16_t>(source, result, &internal::half_to_float);
        case Dtype::bf16:
          return internal::convert_floats<std::uint16_t>(source, result, &internal::bfloat16_to_float);
        case Dtype::f32:
          return internal::convert_floats<float>(source, result);
        default:
          return internal::convert_floats<double>(source, result);
      }
    }
  }

  internal::FileBytes bytes_;
  std::string path_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, SafetensorsTensor, std::less<>> tensors_;
};

/// Collects named tensors and writes them as a safetensors file.
class SafetensorsWriter {
 public:
  /// Sets a string of the file's "__metadata__".
  void set_metadata(std::string key, std::string value) { metadata_[std::move(key)] = std::move(value); }

  /// Adds a tensor, copying `data`: numbers of T (bool, an integral type, float or double) of this shape, row-major.
  /// Throws std::invalid_argument if the name is taken or reserved, or the size isn't that of the shape.
  template <class T>
    requires std::is_arithmetic_v<T>
  void add(const std::string& name, std::span<const Index> shape, std::span<const T> data) {
    Index count = 1;
    for (const Index size : shape) {
      expect(size >= 0 && (size == 0 || count <= std::numeric_limits<Index>::max() / size), "SafetensorsWriter", name,
             "impossible shape " + internal::shape_text(shape));
      count *= size;
    }
    expect(count == Index(data.size()), "SafetensorsWriter", name,
           "shape " + internal::shape_text(shape) + " with " + std::to_string(data.size()) + " numbers");
    expect(name != "__metadata__", "SafetensorsWriter", name, "the name is reserved");
    expect(!tensors_.contains(name), "SafetensorsWriter", name, "added twice");
    Stored stored{dtype_of<T>(), {shape.begin(), shape.end()}, {}};
    stored.bytes.reserve(data.size() * sizeof(T));
    for (const T value : data) internal::append_little(stored.bytes, value);
    tensors_.emplace(name, std::move(stored));
  }
  template <class T, class Allocator>
  void add(const std::string& name, std::initializer_list<Index> shape, const std::vector<T, Allocator>& data) {
    add<T>(name, std::span<const Index>(shape.begin(), shape.size()), std::span<const T>(data));
  }
  template <class T>
  void add(const std::string& name, const Matrix<T>& matrix) {
    const Index shape[] = {matrix.rows(), matrix.cols()};
    add<T>(name, shape, std::span<const T>(matrix.data(), std::size_t(matrix.size())));
  }
  template <class T>
  void add(const std::string& name, const Vector<T>& vector) {
    const Index shape[] = {vector.size()};
    add<T>(name, shape, std::span<const T>(vector.data(), std::size_t(vector.size())));
  }

  /// The file's bytes. The widest numbers come first, so every tensor is aligned to the size of its numbers. Throws
  /// std::invalid_argument if a name or a string of the metadata isn't UTF-8.
  std::vector<std::byte> bytes() const {
    std::vector<const std::pair<const std::string, Stored>*> order;
    for (const auto& item : tensors_) order.push_back(&item);
    std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
      return dtype_size(a->second.dtype) > dtype_size(b->second.dtype);
    });
    nlohmann::json header = nlohmann::json::object();
    if (!metadata_.empty()) header["__metadata__"] = metadata_;
    std::size_t total = 0;
    for (const auto* item : order) {
      const Stored& stored = item->second;
      header[item->first] = {{"dtype", dtype_name(stored.dtype)},
                             {"shape", stored.shape},
                             {"data_offsets", {total, total + stored.bytes.size()}}};
      total += stored.bytes.size();
    }
    std::string text;
    try {
      text = header.dump();
    } catch (const nlohmann::json::type_error& error) {
      throw std::invalid_argument(std::string("SafetensorsWriter: names and metadata must be UTF-8: ") + error.what());
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::vector<std::byte> result;
    result.reserve(8 + text.size() + total);
    internal::append_little(result, std::uint64_t(text.size()));
    for (const char c : text) result.push_back(std::byte(c));
    for (const auto* item : order) result.insert(result.end(), item->second.bytes.begin(), item->second.bytes.end());
    return result;
  }

  /// Writes the file. Throws SafetensorsError if that fails, and as bytes does.
  void write(const std::string& path) const {
    const auto content = bytes();
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    if (file == nullptr)
      internal::throw_safetensors(path, "", std::string("can't be opened for writing: ") + std::strerror(errno));
    const bool written = std::fwrite(content.data(), 1, content.size(), file) == content.size();
    if (std::fclose(file) != 0 || !written) internal::throw_safetensors(path, "", "can't be written");
  }

 private:
  struct Stored {
    Dtype dtype;
    std::vector<Index> shape;
    std::vector<std::byte> bytes;
  };

  template <class T>
  static constexpr Dtype dtype_of() {
    if constexpr (std::same_as<T, bool>) {
      return Dtype::boolean;
    } else if constexpr (std::floating_point<T>) {
      static_assert(sizeof(T) == 4 || sizeof(T) == 8, "float or double");
      return sizeof(T) == 4 ? Dtype::f32 : Dtype::f64;
    } else if constexpr (std::is_signed_v<T>) {
      return sizeof(T) == 1 ? Dtype::i8 : sizeof(T) == 2 ? Dtype::i16 : sizeof(T) == 4 ? Dtype::i32 : Dtype::i64;
    } else {
      return sizeof(T) == 1 ? Dtype::u8 : sizeof(T) == 2 ? Dtype::u16 : sizeof(T) == 4 ? Dtype::u32 : Dtype::u64;
    }
  }

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Stored> tensors_;
};

/// Loads every tensor that Weights::visit names from tensor prefix + name of the file. An optional tensor that the file
/// lacks becomes empty. Throws SafetensorsError, with `weights` as they were, if a required tensor is missing or a tensor
/// isn't of floating-point numbers or fits no matrix or vector; shapes are checked by the mixer that takes the weights.
template <class Weights>
void load_weights(Weights& weights, const SafetensorsFile& file, std::string_view prefix = {}) {
  Weights loaded = weights;
  visit_fields(loaded, [&](std::string_view name, auto& tensor, Presence presence) {
    using Tensor = std::remove_cvref_t<decltype(tensor)>;
    using T = typename Tensor::Scalar;
    const std::string full = std::string(prefix).append(name);
    if (presence == Presence::optional && !file.contains(full)) {
      tensor = Tensor();
      return;
    }
    const Dtype dtype = file.tensor(full).dtype;
    if (!is_floating(dtype)) {
      internal::throw_safetensors(file.path(), full,
                                  "expected floating-point numbers, given " + std::string(dtype_name(dtype)));
    }
    if constexpr (bool(Tensor::IsVectorAtCompileTime)) {
      tensor = file.vector<T>(full);
    } else {
      tensor = file.matrix<T>(full);
    }
  });
  weights = std::move(loaded);
}

/// Adds every tensor that Weights::visit names to a file under prefix + name; empty ones are left out. Throws as
/// SafetensorsWriter::add does.
template <class Weights>
void add_weights(SafetensorsWriter& writer, const Weights& weights, std::string_view prefix = {}) {
  visit_fields(weights, [&](std::string_view name, const auto& tensor, Presence) {
    if (tensor.size() > 0) writer.add(std::string(prefix).append(name), tensor);
  });
}

}  // namespace seqmix
