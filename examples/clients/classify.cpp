// Classify pictures in C++: ONNX Runtime, stb_image.h to decode, nlohmann/json.hpp to read the card.
//
//     g++ -std=c++17 -O2 classify.cpp -o classify -I$ONNXRUNTIME/include -I/usr/include/stb -L$ONNXRUNTIME/lib -lonnxruntime
//     ./classify picture.onnx PICTURE...
//
// prints a line for each picture; with --json, a line of JSON with the probabilities of all classes. $ONNXRUNTIME is an unpacked
// release of ONNX Runtime.

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

using nlohmann::json;
using Bytes = std::vector<unsigned char>;

struct Result {
  std::vector<float> probabilities;  // one for each class
  float known_score;
};

Bytes read_file(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) throw std::runtime_error(path + ": " + std::strerror(errno));
  Bytes content;
  unsigned char chunk[65536];
  while (size_t count = std::fread(chunk, 1, sizeof chunk, file)) content.insert(content.end(), chunk, chunk + count);
  std::fclose(file);
  return content;
}

Bytes from_base64(const std::string& text) {
  static const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  Bytes bytes;
  unsigned bits = 0, count = 0;
  for (char c : text) {
    if (c == '=') break;
    bits = bits << 6 | digits.find(c);
    if ((count += 6) >= 8) bytes.push_back(bits >> (count -= 8) & 255);
  }
  return bytes;
}

// Run the graph on an encoded picture: uint8 (H, W, C), where C is 1, 3 or, with transparency, 4.
Result classify(Ort::Session& session, const Bytes& encoded, const std::string& name) {
  int width, height, channels;
  if (!stbi_info_from_memory(encoded.data(), encoded.size(), &width, &height, &channels))
    throw std::runtime_error(name + ": " + stbi_failure_reason());
  const int wanted = channels == 2 ? 4 : channels;  // grey with transparency
  unsigned char* pixels = stbi_load_from_memory(encoded.data(), encoded.size(), &width, &height, &channels, wanted);
  if (!pixels) throw std::runtime_error(name + ": " + stbi_failure_reason());
  const std::array<int64_t, 3> shape{height, width, wanted};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor<uint8_t>(memory, pixels, size_t(height) * width * wanted, shape.data(), 3);
  const char* inputs[] = {"image"};
  const char* outputs[] = {"probabilities", "known_score"};
  auto found = session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 2);
  stbi_image_free(pixels);
  const float* probabilities = found[0].GetTensorData<float>();
  const size_t count = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
  return {{probabilities, probabilities + count}, *found[1].GetTensorData<float>()};
}

int run(int argc, char** argv) {
  if (argc < 2) throw std::runtime_error("usage: classify picture.onnx [--json] PICTURE...");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING);
  const Bytes file = read_file(argv[1]);
  Ort::Session session(env, file.data(), file.size(), Ort::SessionOptions{});

  Ort::AllocatorWithDefaultOptions allocator;
  auto metadata = session.GetModelMetadata();
  auto read = [&](const char* key) {
    auto text = metadata.LookupCustomMetadataMapAllocated(key, allocator);
    if (!text) throw std::runtime_error(std::string("the file has no ") + key);
    return json::parse(text.get());
  };
  const json card = read("fmcae.card"), golden = read("fmcae.golden");
  const std::vector<std::string> class_names = card["class_names"];
  const double threshold = card["calibration"]["threshold"];

  // Replay the golden pictures: this runtime and this decoder must give the numbers that the file was shipped with.
  const double atol = card["tolerance"]["atol"], rtol = card["tolerance"]["rtol"];
  for (size_t i = 0; i < golden["pictures"].size(); ++i) {
    const std::string name = "golden picture " + std::to_string(i);
    const Result result = classify(session, from_base64(golden["pictures"][i]), name);
    for (size_t k = 0; k < class_names.size(); ++k) {
      const double expected = golden["probabilities"][i][k];
      if (!(std::abs(result.probabilities[k] - expected) <= atol + rtol * expected))
        throw std::runtime_error(name + ": another probability of " + class_names[k]);
    }
  }
  std::fprintf(stderr, "%zu golden pictures agree\n", golden["pictures"].size());

  const bool as_json = std::any_of(argv + 2, argv + argc, [](char* word) { return !std::strcmp(word, "--json"); });
  int status = 0;
  for (int i = 2; i < argc; ++i) {
    const std::string path = argv[i];
    if (path == "--json") continue;
    Result result;
    try {
      result = classify(session, read_file(path), path);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: %s\n", error.what());
      status = 1;
      continue;
    }
    const auto best = std::max_element(result.probabilities.begin(), result.probabilities.end());
    const std::string label = class_names[best - result.probabilities.begin()];
    const bool known = result.known_score >= threshold;
    if (as_json) {
      const json values = {{"path", path}, {"label", label}, {"known", known},
                           {"known_score", result.known_score}, {"probabilities", result.probabilities}};
      std::printf("%s\n", values.dump().c_str());
    } else {
      std::printf("%s: %s%s, probability %.4f, known score %.4f\n", path.c_str(), known ? "" : "unknown, nearest ",
                  label.c_str(), *best, result.known_score);
    }
  }
  return status;
}

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
