defmodule PgliteEx.DocumentationTest do
  use ExUnit.Case, async: true

  test "the modules for users are documented, and no others" do
    documented =
      for module <- Application.spec(:pglite_ex, :modules),
          # Those of test/support are compiled with the library.
          module |> source() |> String.contains?("/lib/"),
          {:docs_v1, _, _, _, %{}, _, _} <- [Code.fetch_docs(module)],
          do: module

    assert Enum.sort(documented) == [
             Mix.Tasks.Compile.PglitePort,
             Mix.Tasks.PgliteEx.Install,
             Mix.Tasks.PgliteEx.Move,
             Mix.Tasks.PgliteEx.Server,
             PgliteEx,
             PgliteEx.Branch,
             PgliteEx.Case,
             PgliteEx.Clock,
             PgliteEx.Error,
             PgliteEx.Gate,
             PgliteEx.Limits,
             PgliteEx.LiveDashboard,
             PgliteEx.Options,
             PgliteEx.Random,
             PgliteEx.Sandbox,
             PgliteEx.Telemetry,
             PgliteEx.Template
           ]
  end

  test "every event is documented" do
    {:docs_v1, _, _, _, %{"en" => text}, _, _} = Code.fetch_docs(PgliteEx.Telemetry)

    for [:pglite_ex, span, event] <- PgliteEx.Telemetry.events() do
      [_before, section] = String.split(text, "## `[:pglite_ex, :#{span}, …]`")
      [section | _after] = String.split(section, "\n## ")
      # A span that the functions of others emit has nothing of its own to say about exceptions.
      if event != :exception or span in [:startup, :server, :connection],
        do: assert(section =~ "`:#{event}`")
    end
  end

  defp source(module), do: List.to_string(module.module_info(:compile)[:source])
end
