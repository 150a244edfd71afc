#include "tools/convert_plan.h"
#include "tools/tool_main.h"

int main(int argc, char** argv) {
  hadal::ToolMain tool(
      "hadal-convert",
      "Cuts a Hugging Face checkpoint into one file for each of M ranks, in the layout of "
      "DeepSeek's\n"
      "inference code: model{i}-mp{M}.safetensors, config.json in its names, the tokenizer's "
      "files.\n"
      "hadal-worker loads any Hugging Face directory without this; it helps where each node "
      "should\n"
      "read only its own bytes.\n\n"
      "  hadal-convert --hf-ckpt-path DeepSeek-V3 --save-path v3-mp16 --n-experts 256 \\\n"
      "                --model-parallel 16\n"
      "  mpirun --bind-to none -n 16 hadal-worker --model v3-mp16 --server 127.0.0.1:50052");
  hadal::ConvertOptions options;
  tool.app()
      .add_option("--hf-ckpt-path", options.source_dir, "Hugging Face directory, bf16 or FP8")
      ->required();
  tool.app().add_option("--save-path", options.directory, "directory to write")->required();
  tool.app()
      .add_option("--n-experts", options.n_experts,
                  "routed experts, as a check: n_routed_experts of config.json")
      ->required();
  tool.app()
      .add_option("--model-parallel", options.ranks, "number of ranks M; divides heads and experts")
      ->required()
      ->check(CLI::Range(1, 1024));
  return tool.Run(argc, argv, [&] { return hadal::PlanConversion(options); });
}
