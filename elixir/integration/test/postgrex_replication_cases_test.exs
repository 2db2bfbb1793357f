# The cases of Postgrex for replication connections, as they stand there, over every way to a shared cluster. Postgrex's
# package on Hex comes without them: where it was taken from there, these tests are left out, and say so.

defmodule Integration.PostgrexReplicationCases do
  @moduledoc "Starts servers for the cases of Postgrex, and makes a module of the cases for each."

  import ExUnit.Callbacks, only: [on_exit: 1, start_supervised!: 1]

  @case_file Path.join(
               Mix.Project.deps_paths()[:postgrex],
               "test/replication_connection_test.exs"
             )
  @database "postgrex_test"
  @settings [wal_level: "logical"]

  @doc "Whether Postgrex came with its tests."
  def there?, do: File.exists?(@case_file)

  @doc "Defines a module with the cases, for one way to a server."
  def define!(name, way) do
    [
      {"defmodule ReplicationTest do", "defmodule Integration.PostgrexReplication#{name}Test do"},
      {"@moduletag :logical_replication", "@moduletag mode: :shared"},
      {"setup context do",
       """
       setup_all do
           options = #{inspect(__MODULE__)}.start!(#{inspect(way)})
           :persistent_term.put(__MODULE__, options)
         end

         defp opts, do: :persistent_term.get(__MODULE__) ++ @opts

         setup context do
       """},
      {"Keyword.merge(@opts, ", "Keyword.merge(opts(), "},
      {"start_supervised!({P, @opts}", "start_supervised!({P, opts()}"},
      {"P.start_link(@opts)", "P.start_link(opts())"}
    ]
    |> Enum.reduce(File.read!(@case_file), fn {theirs, ours}, text ->
      # A version that has something else there is to be looked at.
      [before, rest] = String.split(text, theirs)
      before <> ours <> rest
    end)
    |> Code.compile_string(@case_file)
  end

  @doc "Starts a server, and returns the options of connections to it, which lack the database."
  def start!(way) do
    options = way |> start_server!() |> Keyword.delete(:database)
    {:ok, connection} = Postgrex.start_link([database: @database] ++ options)
    # As the test helper of Postgrex does.
    Postgrex.query!(connection, "create publication postgrex_example for all tables", [])
    GenServer.stop(connection)
    options
  end

  defp start_server!(:listener), do: start_listener!([])

  defp start_server!(:unix_listener) do
    directory = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    start_listener!(listen: {:local, directory})
  end

  defp start_server!(:branch) do
    server = start_supervised!({PgliteEx, database: @database, settings: @settings})
    {:ok, branch} = PgliteEx.branch(server)
    PgliteEx.connection_opts(branch)
  end

  # The program's own socket, without the library.
  defp start_server!(:serve) do
    {:ok, executable} = PgliteEx.Executable.find()

    settings =
      for {name, value} <- @settings, argument <- ["--set", "#{name}=#{value}"], do: argument

    arguments = ["serve", "--listen", "127.0.0.1:0" | settings]

    port =
      Port.open({:spawn_executable, executable}, [:binary, :stderr_to_stdout, args: arguments])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> System.cmd("kill", ["#{os_pid}"], stderr_to_stdout: true) end)
    options = [hostname: "127.0.0.1", port: await_port(port, ""), username: "postgres"]
    {:ok, connection} = Postgrex.start_link([database: "postgres"] ++ options)
    Postgrex.query!(connection, "create database #{@database}", [])
    GenServer.stop(connection)
    options
  end

  defp start_listener!(listen) do
    options = [database: @database, settings: @settings] ++ listen
    PgliteEx.connection_opts(start_supervised!({PgliteEx, options}))
  end

  # Until it has printed its URL.
  defp await_port(port, before) do
    receive do
      {^port, {:data, more}} ->
        output = before <> more

        case Regex.run(~r"postgresql://\S+:(\d+)/", output, capture: :all_but_first) do
          [number] -> String.to_integer(number)
          nil -> await_port(port, output)
        end
    after
      60_000 -> raise "the program has not started: #{before}"
    end
  end
end

if Integration.PostgrexReplicationCases.there?() do
  for {name, way} <- [
        Listener: :listener,
        UnixListener: :unix_listener,
        Branch: :branch,
        Serve: :serve
      ],
      do: Integration.PostgrexReplicationCases.define!(name, way)
else
  IO.puts(
    :stderr,
    "left out: Postgrex's cases for replication connections, which are not in its package"
  )
end
