defmodule Integration.NotebookTest do
  @moduledoc "The notebook \"Branches of a database\", cell by cell, with the outputs that are in it."
  use ExUnit.Case, async: true

  @moduletag mode: :shared

  # A cell, and its output if there is one.
  @cell ~r/^```elixir\n(.*?)^```\n(?:\n<!-- livebook:{"output":true} -->\n\n```\n(.*?)\n```)?/ms

  test "its cells have these outputs" do
    cells = Regex.scan(@cell, Integration.Guide.text("branches.livemd"), capture: :all_but_first)
    [[setup] | cells] = cells
    # What it installs is there.
    assert setup =~ ~r/^Mix.install\(\[.*:pglite_ex, path:.*:postgrex,/s

    ExUnit.CaptureIO.capture_io(fn ->
      binding =
        for [code | output] <- cells, reduce: [] do
          binding ->
            {result, binding} = Code.eval_string(code, binding, __ENV__)
            for text <- output, do: assert(result == text |> Code.eval_string() |> elem(0))

            binding
        end

      # The last one is left for a look.
      assert binding[:rows] |> length() == 5
      for pool <- [:main, :attempt], do: GenServer.stop(binding[pool])
      PgliteEx.stop(binding[:server])
    end)

    assert length(cells) == 6
  end
end
