# The cases of Ecto SQL for storage and structures, as they stand there, with the launchers of `mix pglite_ex.install`.
# Ecto SQL's package on Hex comes without them: where it was taken from there, these tests are left out, and say so.

Code.require_file("support/ecto_storage.exs", __DIR__)

case_file = Path.join(Mix.Project.deps_paths()[:ecto_sql], "integration_test/pg/storage_test.exs")

changes = [
  {"defmodule Ecto.Integration.StorageTest do\n  use ExUnit.Case",
   """
   defmodule Integration.EctoStorageCasesTest do
     use ExUnit.Case
     @moduletag mode: :shared
     @moduletag timeout: 300_000

     setup_all do
       Application.put_env(:ecto_sql, :pg_test_url, Integration.EctoStorage.start!())
     end
   """},
  {"alias Ecto.Integration.{PoolRepo, TestRepo}",
   "alias Integration.EctoStorage.{PoolRepo, TestRepo}"}
]

# pg_dump 18.3 writes a random key into every dump (`\restrict`), which cases from before that do not expect.
for_random_keys = [
  {"assert dump == File.read!(dump_path)",
   """
   without_key = &String.replace(&1, ~r/^\\\\(un)?restrict \\w+$/m, "")
       assert without_key.(dump) == without_key.(File.read!(dump_path))
   """},
  {~S("--\n-- PostgreSQL database dump\n--\n\n--" <> _rest),
   ~S("--\n-- PostgreSQL database dump\n--\n\n\\restrict " <> _rest)}
]

replace = fn {theirs, ours}, text ->
  # A version that has something else there is to be looked at.
  [before, rest] = String.split(text, theirs)
  before <> ours <> rest
end

case File.read(case_file) do
  {:ok, text} ->
    changes = if text =~ "restrict", do: changes, else: changes ++ for_random_keys
    changes |> Enum.reduce(text, replace) |> Code.compile_string(case_file)

  {:error, :enoent} ->
    IO.puts(:stderr, "left out: Ecto SQL's cases for storage, which are not in its package")
end
