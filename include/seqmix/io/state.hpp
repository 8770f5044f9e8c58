// The state of a recurrent mixer as bytes, and back.
//
//   Layout   little-endian throughout, the same on every machine
//            "seqmix\0S"          8 bytes
//            u32                  version of this layout, 2
//            u32                  bytes of the mixer's scalar type
//            text                 operator id (u32 size, then the characters)
//            u32                  number of fields, and for each, in the order in which State::visit names them:
//              text                 name
//              u8, u8               kind of number ('i' signed, 'u' unsigned, 'f' floating point), bytes of one
//              u8, u64 ...          number of dimensions (0 for a single number), and the size of each
//              numbers
//            u64                  FNV-1a checksum of everything before it
//
// The weights are not part of it: a state continues a sequence only with the mixer that it came from.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <seqmix/core/error.hpp>
#include <seqmix/core/mixer.hpp>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace seqmix {

namespace internal {

inline constexpr std::string_view state_magic{"seqmix\0S", 8};
inline constexpr std::uint32_t state_version = 2;

/// FNV-1a, 64 bits (Fowler, Noll, Vo). Finds accidents, not attacks.
inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const std::byte byte : bytes) hash = (hash ^ std::uint64_t(byte)) * 0x100000001B3u;
  return hash;
}

template <class Field>
inline constexpr bool has_shape = requires(const Field& field) { field.shape(); };

template <class T>
constexpr char number_kind() {
  return std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u';
}

/// Appends numbers and texts to a blob.
class BlobWriter {
 public:
  template <class T>
  void numbers(std::span<const T> values) {
    static_assert(std::is_arithmetic_v<T>);
    const std::size_t begin = bytes.size();
    bytes.resize(begin + values.size_bytes());
    if (values.empty()) return;
    std::memcpy(bytes.data() + begin, values.data(), values.size_bytes());
    if constexpr (std::endian::native == std::endian::big) {
      for (std::size_t at = begin; at < bytes.size(); at += sizeof(T)) reverse(bytes.data() + at, sizeof(T));
    }
  }
  template <class T>
  void number(std::type_identity_t<T> value) {
    numbers(std::span<const T>(&value, 1));
  }
  void text(std::string_view value) {
    number<std::uint32_t>(std::uint32_t(value.size()));
    numbers(std::span<const char>(value));
  }

  static void reverse(std::byte* data, std::size_t size) {
    for (std::size_t i = 0; i < size / 2; ++i) std::swap(data[i], data[size - 1 - i]);
  }

  std::vector<std::byte> bytes;
};

/// Reads what BlobWriter wrote, and throws std::invalid_argument where the blob ends before it.
class BlobReader {
 public:
  BlobReader(std::string_view operation, std::span<const std::byte> bytes)
      : operation_(operation), rest_(bytes), bytes_(bytes.size()) {}

  /// The next values.size() numbers.
  template <class T>
  void numbers(std::span<T> values) {
    expect(values.size() <= rest_.size() / sizeof(T), operation_, "saved state", "truncated");
    if (values.empty()) return;
    std::memcpy(values.data(), rest_.data(), values.size_bytes());
    if constexpr (std::endian::native == std::endian::big) {
      auto* const data = reinterpret_cast<std::byte*>(values.data());
      for (std::size_t i = 0; i < values.size(); ++i) BlobWriter::reverse(data + i * sizeof(T), sizeof(T));
    }
    rest_ = rest_.subspan(values.size_bytes());
  }
  template <class T>
  T number() {
    T value = {};
    numbers(std::span<T>(&value, 1));
    return value;
  }
  std::string text() {
    const auto size = number<std::uint32_t>();
    expect(size <= rest_.size(), operation_, "saved state", "truncated");
    std::string value(size, '\0');
    numbers(std::span<char>(value));
    return value;
  }

  /// The sizes of an array: no more elements than there are bytes left.
  Shape shape() {
    const auto rank = number<std::uint8_t>();
    expect(rank <= Shape::max_rank, operation_, "saved state", "an array of too many dimensions");
    Index sizes[Shape::max_rank] = {};
    std::uint64_t elements = 1;
    for (std::size_t axis = 0; axis < rank; ++axis) {
      const auto size = number<std::uint64_t>();
      expect(size == 0 || elements <= bytes_ / size, operation_, "saved state", "truncated");
      elements *= size;
      sizes[axis] = Index(size);
    }
    return Shape(std::span<const Index>(sizes, rank));
  }

  /// Bytes not read yet.
  std::size_t remaining() const { return rest_.size(); }

 private:
  std::string_view operation_;
  std::span<const std::byte> rest_;
  std::uint64_t bytes_;
};

}  // namespace internal

/// The bytes of `state`, a state of `mixer`: a few dozen more than its numbers take. O(size). Throws
/// std::invalid_argument if it isn't one of this mixer's.
template <RecurrentMixer M>
std::vector<std::byte> save_state(const M& mixer, const typename M::State& state) {
  mixer.check_state(state);
  std::uint32_t fields = 0;
  visit_fields(state, [&](std::string_view, const auto&) { ++fields; });
  internal::BlobWriter blob;
  blob.numbers(std::span<const char>(internal::state_magic));
  blob.number<std::uint32_t>(internal::state_version);
  blob.number<std::uint32_t>(std::uint32_t(sizeof(typename M::Scalar)));
  blob.text(M::name);
  blob.number<std::uint32_t>(fields);
  visit_fields(state, [&](std::string_view name, const auto& field) {
    using Field = std::remove_cvref_t<decltype(field)>;
    const auto append = [&]<class T>(const Shape& shape, std::span<const T> values) {
      blob.text(name);
      blob.number<char>(internal::number_kind<T>());
      blob.number<std::uint8_t>(std::uint8_t(sizeof(T)));
      blob.number<std::uint8_t>(std::uint8_t(shape.rank()));
      for (Index axis = 0; axis < shape.rank(); ++axis) blob.number<std::uint64_t>(std::uint64_t(shape[axis]));
      blob.numbers(values);
    };
    if constexpr (std::is_same_v<Field, Index>) {
      const std::int64_t value = field;  // Index may be narrower elsewhere
      append(Shape{}, std::span<const std::int64_t>(&value, 1));
    } else if constexpr (internal::has_shape<Field>) {
      append(field.shape(), std::span<const typename Field::value_type>(field.data(), field.size()));
    } else {
      append(Shape{Index(field.size())}, std::span<const typename Field::value_type>(field));
    }
  });
  blob.number<std::uint64_t>(internal::checksum(blob.bytes));
  return std::move(blob.bytes);
}

/// The state that save_state wrote into `bytes` for this mixer, or for one of the same configuration; it continues with
/// the same bits. O(size). Throws std::invalid_argument if the bytes are not a state, are truncated or altered, or belong
/// to another operator, scalar type or configuration.
template <RecurrentMixer M>
typename M::State load_state(const M& mixer, std::span<const std::byte> bytes) {
  constexpr std::string_view subject = "saved state";
  const auto demand = [&](bool condition, std::string_view problem) { expect(condition, M::name, subject, problem); };
  const auto quoted = [](std::string_view text) { return "\"" + std::string(text.substr(0, 100)) + "\""; };

  const std::size_t magic = internal::state_magic.size();
  demand(bytes.size() >= magic && std::memcmp(bytes.data(), internal::state_magic.data(), magic) == 0,
         "not a saved state");
  demand(bytes.size() >= magic + sizeof(std::uint64_t), "truncated");
  const auto content = bytes.first(bytes.size() - sizeof(std::uint64_t));
  const auto sum = internal::BlobReader(M::name, bytes.last(sizeof(std::uint64_t))).number<std::uint64_t>();
  demand(sum == internal::checksum(content), "truncated or altered (the checksum differs)");

  internal::BlobReader blob(M::name, content.subspan(magic));
  const auto version = blob.number<std::uint32_t>();
  demand(version == internal::state_version, "unknown version " + std::to_string(version));
  const auto scalar_size = blob.number<std::uint32_t>();
  const auto name = blob.text();
  demand(name == M::name, "belongs to operator " + quoted(name));
  demand(scalar_size == sizeof(typename M::Scalar), "its scalar type has " + std::to_string(scalar_size) + " bytes");

  auto state = mixer.initial_state();
  std::uint32_t fields = 0;
  visit_fields(state, [&](std::string_view, const auto&) { ++fields; });
  demand(blob.number<std::uint32_t>() == fields, "other fields than this operator's");
  visit_fields(state, [&](std::string_view field_name, auto& field) {
    using Field = std::remove_cvref_t<decltype(field)>;
    const auto given = blob.text();
    demand(given == field_name, "holds " + quoted(given) + " in place of " + quoted(field_name));
    const auto kind = blob.number<char>();
    const auto width = blob.number<std::uint8_t>();
    const auto shape = blob.shape();
    const auto expect_type = [&]<class T>(std::type_identity<T>) {
      demand(kind == internal::number_kind<T>() && width == sizeof(T),
             "numbers of another type in " + quoted(field_name));
    };
    if constexpr (std::is_same_v<Field, Index>) {
      expect_type(std::type_identity<std::int64_t>());
      demand(shape.rank() == 0, "more than one number in " + quoted(field_name));
      const auto value = blob.number<std::int64_t>();
      demand(value >= std::numeric_limits<Index>::min() && value <= std::numeric_limits<Index>::max(),
             quoted(field_name) + " is too large for this machine");
      field = Index(value);
    } else {
      using T = typename Field::value_type;
      expect_type(std::type_identity<T>());
      demand(std::size_t(shape.size()) <= blob.remaining() / sizeof(T), "truncated");  // before memory is taken
      if constexpr (internal::has_shape<Field>) {
        field = Field(shape);
      } else {
        demand(shape.rank() == 1, "an array of several dimensions in " + quoted(field_name));
        field.resize(std::size_t(shape.size()));
      }
      blob.numbers(std::span<T>(field.data(), field.size()));
    }
  });
  demand(blob.remaining() == 0, "goes on behind its last field");
  mixer.check_state(state);
  return state;
}

}  // namespace seqmix
