#include "golden.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/io/safetensors.hpp>
#include <set>

namespace seqmix::test {

namespace {

std::string text_of(const std::vector<Index>& shape) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) text += (axis > 0 ? ", " : "") + std::to_string(shape[axis]);
  return text + "]";
}

Index count_of(const std::vector<Index>& shape) {
  Index count = 1;
  for (const Index size : shape) count *= size;
  return count;
}

std::string number_text(double value) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

}  // namespace

// --- arrays -----------------------------------------------------------------------------------------------------------

template <class T>
GoldenArray<T>::GoldenArray(std::vector<Index> shape)
    : shape_(std::move(shape)), values_(std::size_t(count_of(shape_))) {}

template <class T>
Index GoldenArray<T>::axis(std::size_t which, std::size_t rank) const {
  if (shape_.size() != rank) {
    throw GoldenError("a tensor of shape " + text_of(shape_) + " used with " + std::to_string(rank) + " dimensions");
  }
  return shape_[which];
}

template class GoldenArray<float>;
template class GoldenArray<double>;

// --- config -----------------------------------------------------------------------------------------------------------

struct GoldenConfig::Content {
  nlohmann::json json;
  std::set<std::string> used;
  std::map<std::string, GoldenConfig> nested;

  const nlohmann::json& get(const std::string& key) {
    used.insert(key);
    const auto found = json.find(key);
    if (found == json.end()) throw GoldenError("config key \"" + key + "\" is missing");
    return *found;
  }
  template <class Value>
  Value as(const std::string& key, bool right_type) {
    const auto& value = get(key);
    if (!right_type) throw GoldenError("config key \"" + key + "\" has an unexpected type: " + value.dump());
    return value.get<Value>();
  }
};

namespace {

/// JSON has no infinity; Python writes one nevertheless. Outside of strings it becomes the largest number.
std::string without_infinity(const std::string& json) {
  constexpr std::string_view infinity = "Infinity";
  std::string result;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size();) {
    if (!in_string && json.compare(i, infinity.size(), infinity) == 0) {
      result += "1.7976931348623157e308";
      i += infinity.size();
      continue;
    }
    if (json[i] == '"') in_string = !in_string;
    const bool escape = in_string && json[i] == '\\' && i + 1 < json.size();
    result.append(json, i, escape ? 2 : 1);
    i += escape ? 2 : 1;
  }
  return result;
}

}  // namespace

GoldenConfig::GoldenConfig(const std::string& json) : content_(std::make_shared<Content>()) {
  content_->json = nlohmann::json::parse(without_infinity(json), nullptr, false);
  if (!content_->json.is_object()) throw GoldenError("config is not a JSON object");
}

bool GoldenConfig::has(const std::string& key) const {
  const auto found = content_->json.find(key);
  return found != content_->json.end() && !found->is_null();
}

bool GoldenConfig::has_text(const std::string& key) const { return has(key) && content_->json[key].is_string(); }

bool GoldenConfig::is_null(const std::string& key) const {
  content_->used.insert(key);
  return content_->json.contains(key) && content_->json[key].is_null();
}

bool GoldenConfig::absent(const std::string& key) {
  content_->used.insert(key);
  return !has(key);
}

Index GoldenConfig::integer(const std::string& key) {
  const auto& value = content_->get(key);
  const bool whole = value.is_number_float() && value.get<double>() == std::floor(value.get<double>());
  return whole ? Index(value.get<double>()) : content_->as<Index>(key, value.is_number_integer());
}
double GoldenConfig::number(const std::string& key) {
  return content_->as<double>(key, content_->get(key).is_number());
}
bool GoldenConfig::boolean(const std::string& key) { return content_->as<bool>(key, content_->get(key).is_boolean()); }
std::string GoldenConfig::text(const std::string& key) {
  return content_->as<std::string>(key, content_->get(key).is_string());
}
std::vector<Index> GoldenConfig::integers(const std::string& key) {
  const auto& value = content_->get(key);
  const bool right = value.is_array() &&
                     std::all_of(value.begin(), value.end(), [](const auto& item) { return item.is_number_integer(); });
  return content_->as<std::vector<Index>>(key, right);
}
std::vector<double> GoldenConfig::numbers(const std::string& key) {
  const auto& value = content_->get(key);
  const bool right =
      value.is_array() && std::all_of(value.begin(), value.end(), [](const auto& item) { return item.is_number(); });
  return content_->as<std::vector<double>>(key, right);
}
GoldenConfig& GoldenConfig::object(const std::string& key) {
  const auto found = content_->nested.find(key);
  if (found != content_->nested.end()) return found->second;
  const auto& value = content_->get(key);
  if (!value.is_object()) throw GoldenError("config key \"" + key + "\" is not an object");
  return content_->nested.emplace(key, GoldenConfig(value.dump())).first->second;
}

void GoldenConfig::unknown(const std::string& key) const {
  throw GoldenError("config key \"" + key + "\" has a value that is not known: " + content_->get(key).dump());
}
void GoldenConfig::expect(const std::string& key, bool value) {
  if (!absent(key) && !(content_->get(key).is_boolean() && boolean(key) == value)) unknown(key);
}
void GoldenConfig::expect(const std::string& key, Index value) {
  if (!absent(key) && !(content_->get(key).is_number() && number(key) == double(value))) unknown(key);
}
void GoldenConfig::expect(const std::string& key, double value) {
  if (!absent(key) && !(content_->get(key).is_number() && std::abs(number(key) - value) <= 1e-12 * std::abs(value))) {
    unknown(key);
  }
}
void GoldenConfig::expect(const std::string& key, const char* value) {
  if (!absent(key) && !(content_->get(key).is_string() && text(key) == value)) unknown(key);
}
void GoldenConfig::expect_null(const std::string& key) {
  if (!absent(key)) unknown(key);
}
void GoldenConfig::ignore(const std::string& key) { content_->used.insert(key); }

std::vector<std::string> GoldenConfig::unused() const {
  std::vector<std::string> result;
  for (const auto& [key, value] : content_->json.items()) {
    if (!content_->used.contains(key)) result.push_back(key);
  }
  for (const auto& [key, nested] : content_->nested) {
    for (const auto& inner : nested.unused()) result.push_back(key + "." + inner);
  }
  return result;
}

// --- case -------------------------------------------------------------------------------------------------------------

namespace {

std::string metadata_of(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) throw GoldenError("the metadata lacks \"" + key + "\"");
  return found->second;
}

}  // namespace

GoldenCase::GoldenCase(const std::string& path) : file_(path), config_("{}") {
  const SafetensorsFile source(path);
  operator_ = metadata_of(source, "operator");
  level_ = metadata_of(source, "level");
  config_ = GoldenConfig(metadata_of(source, "config"));
  const auto tolerance = nlohmann::json::parse(metadata_of(source, "tolerance"), nullptr, false);
  if (!tolerance.is_object()) throw GoldenError("tolerance is not a JSON object");
  for (const auto& [key, value] : tolerance.items()) {
    if (!value.is_number()) throw GoldenError("tolerance \"" + key + "\" is not a number");
    tolerances_[key] = value.get<double>();
  }
  for (const auto& name : source.names()) {
    const bool known = name.starts_with("input.") || name.starts_with("weight.") || name.starts_with("output.") ||
                       name.starts_with("cotangent.") || name.starts_with("grad.");
    if (!known) throw GoldenError("a tensor of unknown purpose: " + name);
    const auto& stored = source.tensor(name);
    Tensor tensor{stored.shape, {}, {}, false};
    const auto values = source.read<double>(name);
    tensor.values.assign(values.begin(), values.end());
    if (!is_floating(stored.dtype)) {
      const auto integers = source.read<Index>(name);
      tensor.integers.assign(integers.begin(), integers.end());
    }
    tensors_.emplace(name, std::move(tensor));
  }
}

GoldenCase::Tensor& GoldenCase::find(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw GoldenError("tensor " + name + " is missing");
  found->second.used = true;
  return found->second;
}

template <class T>
GoldenArray<T> GoldenCase::array(const std::string& name, std::vector<Index> shape) {
  const Tensor& tensor = find(name);
  if (!shape.empty()) {
    bool equal = shape.size() == tensor.shape.size();
    for (std::size_t axis = 0; equal && axis < shape.size(); ++axis) {
      equal = shape[axis] == -1 || shape[axis] == tensor.shape[axis];
    }
    if (!equal) {
      throw GoldenError("tensor " + name + " has shape " + text_of(tensor.shape) + ", expected " + text_of(shape));
    }
  }
  GoldenArray<T> result(tensor.shape);
  std::transform(tensor.values.begin(), tensor.values.end(), result.data(), [](double value) { return T(value); });
  return result;
}

template <class T>
Matrix<T> GoldenCase::matrix(const std::string& name) {
  const Tensor& tensor = find(name);
  const Index count = count_of(tensor.shape), columns = tensor.shape.size() < 2 ? 1 : tensor.shape.back();
  Matrix<T> result(columns > 0 ? count / columns : 0, columns);
  std::transform(tensor.values.begin(), tensor.values.end(), result.data(), [](double value) { return T(value); });
  return result;
}

template <class T>
Vector<T> GoldenCase::vector(const std::string& name) {
  const Tensor& tensor = find(name);
  if (std::count_if(tensor.shape.begin(), tensor.shape.end(), [](Index size) { return size != 1; }) > 1) {
    throw GoldenError("tensor " + name + " has shape " + text_of(tensor.shape) + ", expected a vector");
  }
  Vector<T> result(Index(tensor.values.size()));
  std::transform(tensor.values.begin(), tensor.values.end(), result.data(), [](double value) { return T(value); });
  return result;
}

template <class T>
void GoldenCase::copy(const std::string& name, std::span<T> target) {
  const Tensor& tensor = find(name);
  if (tensor.values.size() != target.size()) {
    throw GoldenError("tensor " + name + " has " + std::to_string(tensor.values.size()) + " elements, expected " +
                      std::to_string(target.size()));
  }
  std::transform(tensor.values.begin(), tensor.values.end(), target.begin(), [](double value) { return T(value); });
}

std::vector<double> GoldenCase::expected(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? std::vector<double>() : found->second.values;
}

std::vector<Index> GoldenCase::indices(const std::string& name) {
  const Tensor& tensor = find(name);
  if (tensor.integers.size() != tensor.values.size()) throw GoldenError("tensor " + name + " is not of integers");
  return tensor.integers;
}

void GoldenCase::ignore(const std::string& prefix) {
  for (auto& [name, tensor] : tensors_) {
    if (name.starts_with(prefix)) tensor.used = true;
  }
}

std::vector<std::string> GoldenCase::unused() const {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : tensors_) {
    if (!tensor.used && (name.starts_with("input.") || name.starts_with("weight."))) result.push_back(name);
  }
  return result;
}

double GoldenCase::tolerance(bool is_float, bool stepwise) const {
  const std::string name = is_float ? "float32" : "float64";
  if (stepwise && tolerances_.contains(name + "_stepwise")) return tolerances_.at(name + "_stepwise");
  const auto found = tolerances_.find(name);
  if (found == tolerances_.end()) throw GoldenError("tolerance lacks \"" + name + "\"");
  return found->second;
}

#define SEQMIX_TEST_INSTANTIATE(T)                                                      \
  template GoldenArray<T> GoldenCase::array<T>(const std::string&, std::vector<Index>); \
  template Matrix<T> GoldenCase::matrix<T>(const std::string&);                         \
  template Vector<T> GoldenCase::vector<T>(const std::string&);                         \
  template void GoldenCase::copy<T>(const std::string&, std::span<T>);
SEQMIX_TEST_INSTANTIATE(float)
SEQMIX_TEST_INSTANTIATE(double)
#undef SEQMIX_TEST_INSTANTIATE

// --- layers -----------------------------------------------------------------------------------------------------------

void GoldenCase::read_tensors(const TensorList& weights, const std::string& prefix) {
  for (const auto& [name, tensor, presence] : weights) {
    const std::string full = "weight." + prefix + name;
    if (presence == Presence::optional && !has(full)) {
      tensor.clear();
    } else if (tensor.is_vector()) {
      tensor.assign(vector<double>(full));
    } else {
      tensor.assign(matrix<double>(full));
    }
  }
}

template <class T>
GoldenAnyLayer<T>::GoldenAnyLayer(GoldenCase& golden, std::unique_ptr<AnyMixer<T>> mixer)
    : golden_(golden),
      mixer_(std::move(mixer)),
      x_(golden.array<T>("input.x", {-1, mixer_->channels()})),
      y_(x_.shape()) {}

template <class T>
Index GoldenAnyLayer<T>::length() const {
  return x_.size(0);
}
template <class T>
bool GoldenAnyLayer<T>::stepwise() const {
  return mixer_->recurrent();
}

template <class T>
void GoldenAnyLayer<T>::reset() {
  for (Index i = 0; i < y_.size(); ++i) y_[i] = std::numeric_limits<T>::quiet_NaN();
  this->workspace.poison();
  if (!mixer_->recurrent()) return;
  state_ = mixer_->initial_state();
  const auto empty = state_->bytes();
  read_any_state(golden_, *state_);
  fresh_ = state_->bytes() == empty;
}

template <class T>
void GoldenAnyLayer<T>::whole() {
  // forward starts from the empty state and keeps none: the state comes from prefill.
  run(0, length());
  if (fresh_) mixer_->forward(std::as_const(x_).sequence(), y_.sequence(), this->workspace);
}
template <class T>
void GoldenAnyLayer<T>::run(Index begin, Index count) {
  if (!mixer_->recurrent()) return;
  mixer_->prefill(*state_, std::as_const(x_).sequence().rows(begin, count), y_.sequence().rows(begin, count),
                  this->workspace);
}
template <class T>
void GoldenAnyLayer<T>::step(Index row) {
  if (!mixer_->recurrent()) return;
  mixer_->step(*state_, std::as_const(x_).sequence().token(row), y_.sequence().token(row), this->workspace);
}
template <class T>
void GoldenAnyLayer<T>::collect(GoldenOutputs& outputs) const {
  outputs.add("y", y_);
  if (mixer_->recurrent()) collect_any_state(*state_, outputs);
}

template <class T>
void GoldenAnyLayer<T>::keep_rows(Index rows) {
  if (rows >= length()) return;
  GoldenArray<T> kept({rows, x_.size(1)});
  std::copy_n(x_.data(), kept.size(), kept.data());
  x_ = std::move(kept);
  y_ = GoldenArray<T>(x_.shape());
}

template class GoldenAnyLayer<float>;
template class GoldenAnyLayer<double>;

std::vector<GoldenEntry>& golden_registry() {
  static std::vector<GoldenEntry> entries;
  return entries;
}

// --- the runner -------------------------------------------------------------------------------------------------------

namespace {

/// The worst element over all paths and scalars of a case.
struct Worst {
  double excess = 1;  // difference over allowed difference
  std::string message;
};

std::string index_text(Index flat, const std::vector<Index>& shape) {
  std::vector<Index> index(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    index[axis] = flat % shape[axis];
    flat /= shape[axis];
  }
  return text_of(index);
}

/// Compares every output.* tensor of the file, and remembers the worst element if it is worse than `worst`.
void compare(const GoldenCase& golden, const GoldenOutputs& outputs, double tolerance, const std::string& path,
             Worst& worst) {
  const auto& computed = outputs.values();
  for (const auto& [full, expected] : golden.tensors()) {
    if (!full.starts_with("output.")) continue;
    const auto found = computed.find(full.substr(7));
    if (found == computed.end()) throw GoldenError("the adapter doesn't compute " + full);
    const auto& given = found->second;
    if (given.size() != expected.values.size()) {
      throw GoldenError(full + " has " + std::to_string(given.size()) + " elements, expected shape " +
                        text_of(expected.shape));
    }
    double largest = 0;
    for (const double value : expected.values) {
      if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
    }
    for (std::size_t i = 0; i < given.size(); ++i) {
      const double a = given[i], b = expected.values[i];
      if (a == b || (std::isnan(a) && std::isnan(b))) continue;
      const double difference = std::abs(a - b);
      double excess = std::isnan(difference) || std::isinf(difference) ? std::numeric_limits<double>::infinity()
                      : difference == 0                                ? 0
                                                                       : difference / (tolerance * largest);
      if (excess > worst.excess) {
        worst.excess = excess;
        worst.message = path + ": " + full + " at " + index_text(Index(i), expected.shape) + ": " + number_text(a) +
                        ", expected " + number_text(b) +
                        "; difference / largest = " + number_text(difference / largest) + ", allowed " +
                        number_text(tolerance);
      }
    }
  }
}

template <class T>
void run_in_pieces(GoldenRunner<T>& runner, const std::vector<Index>& cuts) {
  runner.reset();
  Index begin = 0;
  for (const Index cut : cuts) {
    runner.run(begin, cut - begin);
    begin = cut;
  }
  runner.run(begin, runner.length() - begin);
}

template <class T>
void check_scalar(const GoldenEntry& entry, const std::string& path, Worst& worst) {
  constexpr bool is_float = std::same_as<T, float>;
  const std::string scalar = is_float ? "float, " : "double, ";
  GoldenCase golden(path);
  std::unique_ptr<GoldenRunner<T>> runner;
  if constexpr (is_float) {
    runner = entry.make_float(golden);
  } else {
    runner = entry.make_double(golden);
  }
  const auto check = [&](const std::string& how, bool stepwise) {
    GoldenOutputs outputs;
    runner->collect(outputs);
    compare(golden, outputs, golden.tolerance(is_float, stepwise), scalar + how, worst);
  };
  runner->reset();
  runner->whole();
  check("whole sequence", false);

  // Only now is it sure that whatever the adapter reads has been read (states are read by reset).
  std::string unused;
  for (const auto& name : golden.unused()) unused += " " + name;
  if (!unused.empty()) throw GoldenError("tensors that the adapter doesn't know:" + unused);
  for (const auto& key : golden.config().unused()) unused += " " + key;
  if (!unused.empty()) throw GoldenError("config keys that the adapter doesn't know:" + unused);

  if (!runner->stepwise()) return;
  const Index length = runner->length();
  const auto boundaries = runner->boundaries();
  std::vector<std::vector<Index>> patterns = {{}};
  if (!boundaries.empty()) {
    patterns.push_back(boundaries);
    patterns.push_back({boundaries.front()});
    patterns.push_back({boundaries.back()});
  } else {
    const auto every = [&](Index piece) {
      std::vector<Index> cuts;
      for (Index cut = piece; cut < length; cut += piece) cuts.push_back(cut);
      return cuts;
    };
    for (const Index piece : {1, 2, 3, 5, 7, 8, 16, 17, 31}) patterns.push_back(every(piece));
    patterns.push_back({length / 2});
    patterns.push_back({std::min(Index(1), length)});
    patterns.push_back({std::max(Index(0), length - 1)});
    patterns.push_back({0, length / 3, length / 3, length});  // empty pieces
    Rng rng(7);
    for (int repeat = 0; repeat < 3; ++repeat) {
      std::vector<Index> cuts;
      for (int count = 0; count < 4; ++count) cuts.push_back(rng.integer(0, length));
      std::sort(cuts.begin(), cuts.end());
      patterns.push_back(cuts);
    }
  }
  for (const auto& cuts : patterns) {
    run_in_pieces(*runner, cuts);
    check("cut at " + text_of(cuts), true);
  }
  if (!boundaries.empty()) return;
  runner->reset();
  for (Index t = 0; t < length; ++t) runner->step(t);
  check("step by step", true);

  runner->reset();  // a prompt, then token by token
  runner->run(0, length / 2);
  for (Index t = length / 2; t < length; ++t) runner->step(t);
  check("one piece, then step by step", true);
}

}  // namespace

std::string check_golden_case(const std::string& path) {
  try {
    const GoldenCase golden(path);
    for (const auto& entry : golden_registry()) {
      if (entry.operator_id != golden.operator_id() || entry.level != golden.level()) continue;
      Worst worst;
      if (scalar_tested<double>) check_scalar<double>(entry, path, worst);
      if (scalar_tested<float>) check_scalar<float>(entry, path, worst);
      return worst.message;
    }
    return "no adapter for operator \"" + golden.operator_id() + "\", level \"" + golden.level() + "\"";
  } catch (const std::exception& error) {
    std::string message = error.what();
    if (message.starts_with(path + ": ")) message.erase(0, path.size() + 2);
    return message.empty() ? "an exception without a message" : message;
  }
}

std::string golden_operator(const std::string& path) {
  try {
    return GoldenCase(path).operator_id();
  } catch (const std::exception&) {
    return {};
  }
}

std::vector<std::string> golden_files(const std::string& directory) {
  std::vector<std::string> result;
  for (const auto& item : std::filesystem::recursive_directory_iterator(directory)) {
    if (item.path().extension() == ".safetensors") result.push_back(item.path().string());
  }
  std::sort(result.begin(), result.end());
  return result;
}

}  // namespace seqmix::test
