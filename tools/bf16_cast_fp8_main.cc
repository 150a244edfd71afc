#include "tools/cast_plan.h"
#include "tools/tool_main.h"

int main(int argc, char** argv) {
  hadal::ToolMain tool("hadal-bf16-cast-fp8",
                       "Casts the matrices of attention, MLPs and experts of a bf16 Hugging Face "
                       "checkpoint to e4m3\n"
                       "with one F32 scale for each 128 x 128 block, as FP8 releases hold them. "
                       "Embedding, head, norms\n"
                       "and router stay. The output is about half as large and loads as FP8.\n\n"
                       "  hadal-bf16-cast-fp8 --input-bf16-hf-path Moonlight-16B-A3B "
                       "--output-fp8-hf-path moonlight-fp8");
  std::string source;
  std::string directory;
  std::string scale_fmt = "float";
  tool.app().add_option("--input-bf16-hf-path", source, "Hugging Face directory")->required();
  tool.app().add_option("--output-fp8-hf-path", directory, "directory to write")->required();
  tool.app()
      .add_option("--scale-fmt", scale_fmt, "float, or ue8m0: powers of two, as DeepSeek-V3.1 has")
      ->check(CLI::IsMember({"float", "ue8m0"}))
      ->capture_default_str();
  return tool.Run(argc, argv,
                  [&] { return hadal::PlanCastToF8E4M3(source, directory, scale_fmt == "ue8m0"); });
}
