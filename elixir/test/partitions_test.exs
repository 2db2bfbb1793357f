defmodule PgliteEx.PartitionsTest do
  @moduledoc "`mix test --partitions` as the guide \"Tests on several machines\" has it, with a node for each partition."
  use ExUnit.Case, async: true

  alias PgliteEx.{Caches, ElixirAlone}

  @moduletag :tmp_dir
  @moduletag timeout: 300_000

  @guide File.read!(Path.join(__DIR__, "../guides/tests_on_several_machines.md"))

  # Where the migrations of an application would be.
  @test_data """
  defmodule MyApp.TestData do
    def migrate(connection_opts) do
      File.write!(System.fetch_env!("MIGRATED"), System.fetch_env!("MIX_TEST_PARTITION"), [:append])
      server = connection_opts[:pglite_ex]
      {:ok, _} = PgliteEx.load(server, "schema.sql", database: connection_opts[:database])
    end
  end
  """

  setup %{tmp_dir: directory} do
    {_output, 0} = System.cmd("epmd", ["-daemon"])
    File.chmod!(directory, 0o700)
    {:ok, server} = PgliteEx.start_link(mode: :isolated)
    PgliteEx.stop(server)
    on_exit(fn -> File.rm_rf(directory) end)
    project = Path.join(directory, "my_app")

    for {path, text} <- [
          {"mix.exs", mix_exs(ElixirAlone.library!(Path.join(directory, "library")))},
          {"schema.sql", "create table t as select n from generate_series(1, 10) n"},
          {"test/support/test_data.ex", @test_data}
          | for(number <- 1..4, do: {"test/t#{number}_test.exs", test_file(number)})
        ] do
      path = Path.join(project, path)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, text)
    end

    %{project: project}
  end

  test "on two nodes, one of which prepares the template for both", context do
    [_file, partitions, helper] =
      for [code] <- Regex.scan(~r/```elixir\n(.*?)```/s, @guide, capture: :all_but_first),
          do: code

    File.write!(Path.join(context.project, "test/support/partitions.ex"), partitions)
    write_helper!(context.project, helper)
    nodes = for number <- 1..2, do: "pglite_ex_#{System.pid()}_part#{number}@127.0.0.1"

    outputs =
      nodes
      |> Enum.with_index(1)
      |> Task.async_stream(
        fn {node, number} ->
          cache = Caches.without_templates!(context.tmp_dir, "cache#{number}")

          variables = [
            {"TEST_NODES", Enum.join(nodes, " ")},
            {"XDG_CACHE_HOME", Path.dirname(cache)}
          ]

          run(context, ["--name", node, "--cookie", "of_this_test"], number, variables)
        end,
        timeout: :infinity
      )
      |> Enum.map(fn {:ok, output} -> output end)

    for {output, status} <- outputs, do: assert({status, output} == {0, output})
    assert for({output, _status} <- outputs, do: output =~ "2 tests, 0 failures") == [true, true]
    # By one of them.
    assert byte_size(File.read!(migrated(context))) == 1
    # On a machine alone, as before.
    cache = Path.join(context.tmp_dir, "cache1")
    assert {output, 0} = run(context, [], 1, [{"XDG_CACHE_HOME", cache}])
    assert output =~ "2 tests, 0 failures"
    assert byte_size(File.read!(migrated(context))) == 1
  end

  test "with a file, which the first one leaves to the second one", context do
    [helper | _others] =
      for [code] <- Regex.scan(~r/```elixir\n(.*?)```/s, @guide, capture: :all_but_first),
          do: code

    write_helper!(context.project, helper)

    file = Path.join(context.tmp_dir, "my_app_test.template")

    in_job = fn number, command ->
      cache = Caches.without_templates!(context.tmp_dir, "cache#{number}")
      variables = [{"TEMPLATE_FILE", file}, {"XDG_CACHE_HOME", Path.dirname(cache)}]
      run(context, [], number, variables, command)
    end

    assert {_output, 0} = in_job.(1, ["run", "test/test_helper.exs"])
    assert File.exists?(file)
    assert {output, 0} = in_job.(2, ["test", "--partitions", "2"])
    assert output =~ "2 tests, 0 failures"
    assert File.read!(migrated(context)) == "1"
  end

  defp migrated(context), do: Path.join(context.tmp_dir, "migrated")

  defp run(context, arguments, number, variables, command \\ ["test", "--partitions", "2"]) do
    System.cmd("elixir", arguments ++ ["-S", "mix" | command],
      cd: context.project,
      stderr_to_stdout: true,
      env:
        [
          {"MIX_ENV", "test"},
          # Each has a machine, and so a build, of its own.
          {"MIX_BUILD_PATH", Path.join(context.tmp_dir, "build#{number}")},
          {"MIX_TEST_PARTITION", "#{number}"},
          {"MIGRATED", migrated(context)}
        ] ++ variables
    )
  end

  # There is no Ecto.
  defp write_helper!(project, helper) do
    key = "PgliteEx.Template.key(MyApp.Repo)"
    true = helper =~ key
    File.write!(Path.join(project, "test/test_helper.exs"), String.replace(helper, key, ~s("k")))
  end

  defp mix_exs(library) do
    """
    defmodule MyApp.MixProject do
      use Mix.Project
      def project do
        deps = [{:pglite_ex, path: #{inspect(library)}}]
        [app: :my_app, version: "0.1.0", elixirc_paths: ["test/support"], deps: deps]
      end
      def application, do: [extra_applications: [:logger]]
    end
    """
  end

  defp test_file(number) do
    """
    defmodule MyApp.T#{number}Test do
      use ExUnit.Case, async: true

      test "has a database of its own" do
        registry = PgliteEx.Parts.registry!(MyApp.TestPostgres)

        PgliteEx.Session.run(registry, "my_app_test", [], fn session ->
          {:ok, _rows} = PgliteEx.Session.query(session, "delete from t where n = #{number}")
          assert {:ok, [["9"]]} = PgliteEx.Session.query(session, "select count(*) from t")
        end)
      end
    end
    """
  end
end
