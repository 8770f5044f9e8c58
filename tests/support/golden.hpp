// Golden cases: outputs computed by published implementations, compared through every path of a mixer.
//
// For every file the runner builds an adapter, a GoldenRunner<float> and a GoldenRunner<double>, lets it compute the
// whole sequence, then the same in pieces, then token by token, and each time compares every output.* tensor of the
// file. What the adapter never looked at (a config key, an input or weight tensor) is an error, so a file that asks for
// something the adapter doesn't know can't pass by accident.
//
// An adapter for a core function:
//
//   template <class T>
//   struct RetentionCoreGolden final : GoldenRunner<T> {
//     explicit RetentionCoreGolden(GoldenCase& golden)
//         : heads(golden.config().integer("heads")), head_dim(golden.config().integer("head_dim")),
//           query(golden.array<T>("input.q", {-1, heads, head_dim})), ... {
//       golden.config().expect("causal", true);          // any other value is an error
//       golden.config().ignore("state_layout");          // a remark
//       initial = golden.has("input.state.s") ? golden.array<T>("input.state.s", {heads, head_dim, value_dim})
//                                              : GoldenArray<T>({heads, head_dim, value_dim});
//     }
//     Index length() const override { return query.size(0); }
//     void reset() override { state = initial; }
//     void run(Index begin, Index count) override {      // rows begin .. begin + count - 1, from and into the state
//       retention(query.heads().rows(begin, count), ..., y.heads().rows(begin, count), workspace);
//     }
//     void collect(GoldenOutputs& outputs) const override {
//       outputs.add("y", y);
//       outputs.add("state.s", state);
//     }
//   };
//   const GoldenRegistration<RetentionCoreGolden> core{"retention", "core"};
//
// An adapter for a mixer; weights are read from weight.<name> for the names that Weights::visit gives:
//
//   template <class T>
//   struct RetentionLayerGolden final : GoldenLayer<Retention<T>> {
//     using Base = GoldenLayer<Retention<T>>;
//     explicit RetentionLayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}
//     static Retention<T>::Config config(GoldenCase& golden) { return {.channels = golden.config().integer("dim"), ...}; }
//
//     // Where files have states:
//     void read_state(GoldenCase& golden, Retention<T>::State& state) override { golden.copy("input.state.s", state.memory); }
//     void collect_state(const Retention<T>::State& state, GoldenOutputs& outputs) const override {
//       outputs.add("state.s", state.memory);
//     }
//   };
//
// Where the type of the mixer depends on the config, give the adapter a static member instead of a constructor:
//   static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden);
#pragma once

#include <map>
#include <memory>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/workspace.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "any_mixer.hpp"
#include "fields.hpp"
#include "scalars.hpp"

namespace seqmix::test {

/// An owned array with any number of dimensions, row-major.
template <class T>
class GoldenArray {
 public:
  GoldenArray() = default;
  explicit GoldenArray(std::vector<Index> shape);  ///< zeros

  const std::vector<Index>& shape() const { return shape_; }
  Index size(std::size_t axis) const { return shape_.at(axis); }
  Index size() const { return Index(values_.size()); }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }
  T& operator[](Index i) { return values_[std::size_t(i)]; }
  const T& operator[](Index i) const { return values_[std::size_t(i)]; }

  /// Views; each throws unless the array has as many dimensions.
  Token<T> token() { return {data(), axis(0, 1)}; }
  Token<const T> token() const { return {data(), axis(0, 1)}; }
  Sequence<T> sequence() { return {data(), axis(0, 2), axis(1, 2)}; }
  Sequence<const T> sequence() const { return {data(), axis(0, 2), axis(1, 2)}; }
  HeadSequence<T> heads() { return {data(), axis(0, 3), axis(1, 3), axis(2, 3)}; }
  HeadSequence<const T> heads() const { return {data(), axis(0, 3), axis(1, 3), axis(2, 3)}; }

 private:
  Index axis(std::size_t which, std::size_t rank) const;

  std::vector<Index> shape_;
  Buffer<T> values_;
};

/// The hyperparameters of a case. Remembers which keys were asked for. Every function throws GoldenError, naming the
/// key, where the key is missing (unless a default is given) or the value has another type.
class GoldenConfig {
 public:
  explicit GoldenConfig(const std::string& json);

  bool has(const std::string& key) const;      ///< present, and not null
  bool is_null(const std::string& key) const;  ///< present and null; counts as asking for it
  bool has_text(const std::string& key) const;
  Index integer(const std::string& key);
  double number(const std::string& key);
  bool boolean(const std::string& key);
  std::string text(const std::string& key);
  std::vector<Index> integers(const std::string& key);
  std::vector<double> numbers(const std::string& key);
  GoldenConfig& object(const std::string& key);  ///< a nested object, with the same rules

  /// The default stands for an absent key and for null.
  Index integer(const std::string& key, Index otherwise) { return absent(key) ? otherwise : integer(key); }
  double number(const std::string& key, double otherwise) { return absent(key) ? otherwise : number(key); }
  bool boolean(const std::string& key, bool otherwise) { return absent(key) ? otherwise : boolean(key); }
  std::string text(const std::string& key, const std::string& otherwise) { return absent(key) ? otherwise : text(key); }

  /// The only value known: another is an error, an absent key isn't.
  void expect(const std::string& key, bool value);
  void expect(const std::string& key, Index value);
  void expect(const std::string& key, int value) { expect(key, Index(value)); }
  void expect(const std::string& key, double value);  // to 1e-12 relative
  void expect(const std::string& key, const char* value);
  void expect_null(const std::string& key);

  /// A remark for people.
  void ignore(const std::string& key);

  /// Throws: the value of `key` is one that the adapter doesn't know.
  [[noreturn]] void unknown(const std::string& key) const;

  /// The keys that nobody asked for, those of nested objects as "outer.inner".
  std::vector<std::string> unused() const;

 private:
  struct Content;
  bool absent(const std::string& key);
  std::shared_ptr<Content> content_;
};

/// A case that can't be built or run; the runner adds the file's name.
class GoldenError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One file. Remembers which tensors were asked for.
class GoldenCase {
 public:
  /// Reads a file. Throws SafetensorsError or GoldenError if it isn't a golden case.
  explicit GoldenCase(const std::string& path);

  const std::string& file() const { return file_; }
  const std::string& operator_id() const { return operator_; }
  const std::string& level() const { return level_; }
  GoldenConfig& config() { return config_; }

  /// Whether there is a tensor of this full name ("input.state.s").
  bool has(const std::string& name) const { return tensors_.contains(name); }

  /// A tensor, rounded to T. `shape`, where given, is checked; -1 stands for any size. Throws GoldenError.
  template <class T>
  GoldenArray<T> array(const std::string& name, std::vector<Index> shape = {});

  /// The same with the dimensions that weights have (core/parameters.hpp).
  template <class T>
  Matrix<T> matrix(const std::string& name);
  template <class T>
  Vector<T> vector(const std::string& name);

  /// Copies a tensor over the elements of `target`, which must have as many.
  template <class T>
  void copy(const std::string& name, std::span<T> target);
  template <class Array>
  void copy(const std::string& name, Array& target) {
    copy(name, std::span(target.data(), target.size()));
  }

  /// The elements of an output that says the same in many ways, to choose that of the file; none where it has no such tensor.
  std::vector<double> expected(const std::string& name) const;

  /// Indices and bits, exactly.
  std::vector<Index> indices(const std::string& name);

  /// Counts all tensors whose names begin so as asked for.
  void ignore(const std::string& prefix);

  /// Fills the members that weights.visit names from weight.<prefix><name>. Throws if a required one is missing.
  template <class Weights>
  void read_weights(Weights& weights, const std::string& prefix = "") {
    read_tensors(tensors_of(weights), prefix);
  }
  void read_tensors(const TensorList& weights, const std::string& prefix);

  /// For the runner.
  struct Tensor {
    std::vector<Index> shape;
    std::vector<double> values;
    std::vector<Index> integers;  // exact values where the file holds integers
    bool used = false;
  };
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  std::vector<std::string> unused() const;
  double tolerance(bool is_float, bool stepwise) const;

 private:
  Tensor& find(const std::string& name);

  std::string file_, operator_, level_;
  GoldenConfig config_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, double> tolerances_;
};

/// What an adapter computed, by the names of the file without "output.".
class GoldenOutputs {
 public:
  /// Any contiguous array or Eigen object; a row-major one where it has two dimensions.
  template <class Array>
    requires requires(const Array& array) {
      array.data();
      array.size();
    }
  void add(const std::string& name, const Array& array) {
    values_[name] = std::vector<double>(array.data(), array.data() + array.size());
  }
  template <class T>
  void add(const std::string& name, const Sequence<T>& rows) {
    auto& values = values_[name];
    for (Index t = 0; t < rows.length(); ++t) values.insert(values.end(), rows.row(t), rows.row(t) + rows.channels());
  }
  template <class T>
  void add(const std::string& name, const HeadSequence<T>& rows) {
    auto& values = values_[name];
    for (Index t = 0; t < rows.length(); ++t) {
      for (Index h = 0; h < rows.heads(); ++h) {
        values.insert(values.end(), rows.row(t, h), rows.row(t, h) + rows.head_dim());
      }
    }
  }
  /// A single number.
  void add_number(const std::string& name, double value) { values_[name] = {value}; }

  const std::map<std::string, std::vector<double>>& values() const { return values_; }

 private:
  std::map<std::string, std::vector<double>> values_;
};

/// Computes one case with scalar T. The case outlives the runner.
template <class T>
class GoldenRunner {
 public:
  virtual ~GoldenRunner() = default;

  /// Number of rows that run counts in.
  virtual Index length() const = 0;

  /// Back to the beginning: the state is input.state.*, or the empty one.
  virtual void reset() = 0;

  /// Computes rows begin .. begin + count - 1. The runner asks for all rows in order; count may be 0.
  virtual void run(Index begin, Index count) = 0;

  /// Computes one row; another function where the operator has one.
  virtual void step(Index row) { run(row, 1); }

  /// Computes all rows, after reset; another function where the operator has one.
  virtual void whole() { run(0, length()); }

  /// Whether run may be called for a part of the rows (not: causal false).
  virtual bool stepwise() const { return true; }

  /// The rows before which the sequence may be cut, where it may not be cut anywhere (segments).
  virtual std::vector<Index> boundaries() const { return {}; }

  /// Adds every output.* tensor of the file. Called when all rows have been computed.
  virtual void collect(GoldenOutputs& outputs) const = 0;

 protected:
  Workspace workspace;
};

namespace detail {

struct NoState {};

template <class M>
struct StateType {
  using Type = NoState;
};
template <RecurrentMixer M>
struct StateType<M> {
  using Type = typename M::State;
};

}  // namespace detail

/// What GoldenLayer does without knowing the type of its mixer.
template <class T>
class GoldenAnyLayer : public GoldenRunner<T> {
 public:
  /// Reads input.x.
  GoldenAnyLayer(GoldenCase& golden, std::unique_ptr<AnyMixer<T>> mixer);

  Index length() const override;
  bool stepwise() const override;
  void reset() override;
  void whole() override;
  void run(Index begin, Index count) override;
  void step(Index row) override;
  void collect(GoldenOutputs& outputs) const override;

 protected:
  const AnyMixer<T>& any_mixer() const { return *mixer_; }

  /// Leaves all but the first rows of input.x out, where the reference gives no outputs for them.
  void keep_rows(Index rows);

 private:
  virtual void read_any_state(GoldenCase& golden, AnyState& state) = 0;
  virtual void collect_any_state(const AnyState& state, GoldenOutputs& outputs) const = 0;

  GoldenCase& golden_;
  std::unique_ptr<AnyMixer<T>> mixer_;
  GoldenArray<T> x_, y_;
  std::unique_ptr<AnyState> state_;
  bool fresh_ = true;
};

/// An adapter for a mixer x -> y. Recurrent mixers are run by forward, prefill and step, others by forward.
template <Mixer M>
class GoldenLayer : public GoldenAnyLayer<typename M::Scalar> {
 public:
  using T = typename M::Scalar;

  /// Reads input.x and the weights.
  GoldenLayer(GoldenCase& golden, const typename M::Config& config) : GoldenLayer(golden, config, weights_of(golden)) {}

  /// The same with the adapter's own weights, for other names than those that visit gives.
  GoldenLayer(GoldenCase& golden, const typename M::Config& config, const typename M::Weights& weights)
      : GoldenAnyLayer<T>(golden, make_any<M>(golden.operator_id(), config, weights)) {}

 protected:
  using State = typename detail::StateType<M>::Type;

  /// Sets `state`, fresh from initial_state, to what the case's input.state.* and config (a position) say.
  virtual void read_state(GoldenCase&, State&) {}

  /// Adds "state.<name>" for each output.state.<name>.
  virtual void collect_state(const State&, GoldenOutputs&) const {}

  const M& mixer() const { return static_cast<const detail::MixerOf<M>&>(this->any_mixer()).mixer(); }

 private:
  static typename M::Weights weights_of(GoldenCase& golden) {
    typename M::Weights weights{};
    golden.read_weights(weights);
    return weights;
  }
  void read_any_state([[maybe_unused]] GoldenCase& golden, [[maybe_unused]] AnyState& state) override {
    if constexpr (RecurrentMixer<M>) read_state(golden, state_cast<State>(state));
  }
  void collect_any_state([[maybe_unused]] const AnyState& state,
                         [[maybe_unused]] GoldenOutputs& outputs) const override {
    if constexpr (RecurrentMixer<M>) collect_state(state_cast<State>(state), outputs);
  }
};

/// What the registry knows of one adapter.
struct GoldenEntry {
  std::string operator_id, level;
  std::unique_ptr<GoldenRunner<float>> (*make_float)(GoldenCase&);  // null where the scalar is not tested
  std::unique_ptr<GoldenRunner<double>> (*make_double)(GoldenCase&);
};

/// All registered adapters.
std::vector<GoldenEntry>& golden_registry();

/// Registers adapter `Runner` for the files of one operator and level. (The second parameter gives the registrations of
/// equally named adapters in different files different names: GCC lets a template of an unnamed namespace not do so.)
template <template <class> class Runner, class = Runner<float>>
struct GoldenRegistration {
  GoldenRegistration(std::string operator_id, std::string level) {
    golden_registry().push_back({std::move(operator_id), std::move(level), maker<float>(), maker<double>()});
  }

 private:
  template <class T>
  static constexpr auto maker() -> std::unique_ptr<GoldenRunner<T>> (*)(GoldenCase&) {
    if constexpr (scalar_tested<T>) {
      return &make<T>;
    } else {
      return nullptr;
    }
  }
  template <class T>
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if constexpr (requires { Runner<T>::make(golden); }) {
      return Runner<T>::make(golden);
    } else {
      return std::make_unique<Runner<T>>(golden);
    }
  }
};

/// Runs the case at `path` in float and double (those tested, see scalars.hpp) through every path. Returns what is wrong, one line without the file's
/// name, or nothing. Never throws.
std::string check_golden_case(const std::string& path);

/// The operator that the case at `path` belongs to, or nothing if the file can't be read.
std::string golden_operator(const std::string& path);

/// All *.safetensors files below `directory`, sorted. Throws if it can't be read.
std::vector<std::string> golden_files(const std::string& directory);

extern template class GoldenArray<float>;
extern template class GoldenArray<double>;
extern template class GoldenAnyLayer<float>;
extern template class GoldenAnyLayer<double>;
#define SEQMIX_TEST_EXTERN(T)                                                                  \
  extern template GoldenArray<T> GoldenCase::array<T>(const std::string&, std::vector<Index>); \
  extern template Matrix<T> GoldenCase::matrix<T>(const std::string&);                         \
  extern template Vector<T> GoldenCase::vector<T>(const std::string&);                         \
  extern template void GoldenCase::copy<T>(const std::string&, std::span<T>);
SEQMIX_TEST_EXTERN(float)
SEQMIX_TEST_EXTERN(double)
#undef SEQMIX_TEST_EXTERN

}  // namespace seqmix::test
