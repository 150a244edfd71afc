#include "tools/cast_plan.h"
#include "tools/tool_main.h"

int main(int argc, char** argv) {
  hadal::ToolMain tool("hadal-fp8-cast-bf16",
                       "Casts the e4m3 matrices of a Hugging Face checkpoint with their "
                       "weight_scale_inv to bf16, on\n"
                       "the CPU. Shards keep their names; index and config.json are rewritten, all "
                       "else is copied. The\n"
                       "output is about twice as large.\n\n"
                       "  hadal-fp8-cast-bf16 --input-fp8-hf-path DeepSeek-V3 "
                       "--output-bf16-hf-path DeepSeek-V3-bf16");
  std::string source;
  std::string directory;
  tool.app().add_option("--input-fp8-hf-path", source, "Hugging Face directory")->required();
  tool.app().add_option("--output-bf16-hf-path", directory, "directory to write")->required();
  return tool.Run(argc, argv, [&] { return hadal::PlanCastToBf16(source, directory); });
}
