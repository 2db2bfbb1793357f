# The cases of Ecto SQL's own sandbox, as they stand there, on the one of PgliteEx. Their repos are started by
# `test_helper.exs`.

case_file = Path.join(Mix.Project.deps_paths()[:ecto_sql], "integration_test/sql/sandbox.exs")

[
  {"defmodule Ecto.Integration.SandboxTest do
  use ExUnit.Case", "defmodule Integration.EctoSandboxCasesTest do
  use ExUnit.Case
  @moduletag mode: :shared"},
  {"alias Ecto.Adapters.SQL.Sandbox", "alias PgliteEx.Sandbox"},
  {"Ecto.Integration.{PoolRepo, TestRepo}", "Integration.EctoCases.{PoolRepo, TestRepo}"},
  {"alias Ecto.Integration.Post", "alias Integration.EctoCases.Post"}
]
|> Enum.reduce(File.read!(case_file), fn {theirs, ours}, text ->
  # A version that has something else there is to be looked at.
  [before, rest] = String.split(text, theirs)
  before <> ours <> rest
end)
|> Code.compile_string(case_file)
