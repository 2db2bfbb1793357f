defmodule PgliteEx.NativePostgres do
  @moduledoc "A PostgreSQL that is installed on this machine, with a new cluster, for tests."

  # The directory of its programs, if it is not one of Debian's packages.
  @variable "PGLITE_PORT_BENCH_POSTGRES"
  # Ends the server when its own standard input ends, which it does with the test and with the VM.
  @shell ~S("$0" "$@" </dev/null & server=$!; read -r _; kill -QUIT $server; wait $server)

  @doc "The directory with the newest one's programs; `nil` if there is none."
  def programs do
    given = System.get_env(@variable)
    directories = if given, do: [given], else: Path.wildcard("/usr/lib/postgresql/*/bin")

    directories
    |> Enum.filter(&File.exists?(Path.join(&1, "postgres")))
    |> Enum.max_by(&version/1, fn -> nil end)
  end

  @doc "Starts a server, which ends with the test; returns options with which clients connect."
  def start! do
    directory =
      Path.join(
        System.tmp_dir!(),
        "pglite_ex_native_#{System.pid()}_#{System.unique_integer([:positive])}"
      )

    File.mkdir!(directory)
    # It must not run as root.
    root? = System.cmd("id", ["-u"]) == {"0\n", 0}
    if root?, do: {_output, 0} = System.cmd("chown", ["postgres", directory])
    data = Path.join(directory, "data")
    options = ["--auth=trust", "--username=postgres", "--no-locale", "--encoding=UTF8"]
    [program | arguments] = command(root?, "initdb", options ++ ["--no-sync", "--pgdata", data])
    {_output, 0} = System.cmd(program, arguments, cd: "/", stderr_to_stdout: true)
    port = free_port()

    settings = [
      "port=#{port}",
      "listen_addresses=127.0.0.1",
      "unix_socket_directories=#{directory}"
    ]

    settings = for setting <- settings, word <- ["-c", setting], do: word

    test = self()
    server = ["-c", @shell | command(root?, "postgres", ["-D", data | settings])]
    ExUnit.Callbacks.start_supervised!({Task, fn -> run(server, test) end})

    receive do
      {__MODULE__, {:os_pid, shell}} ->
        ExUnit.Callbacks.on_exit(fn -> remove!(shell, directory) end)
    after
      60_000 -> raise "PostgreSQL does not start"
    end

    [hostname: "127.0.0.1", port: port, username: "postgres", database: "postgres"]
  end

  # Owns the server, and tells the test when it takes clients.
  defp run(server, test) do
    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        :stderr_to_stdout,
        line: 1_000,
        cd: "/",
        args: server
      ])

    tell_when_ready(port, test)
  end

  defp tell_when_ready(port, test) do
    receive do
      {^port, {:data, {_complete_or_not, line}}} ->
        if line =~ "ready to accept connections",
          do: send(test, {__MODULE__, Port.info(port, :os_pid)})

        tell_when_ready(port, test)
    end
  end

  # The port has closed with its owner, which has ended before.
  defp remove!(shell, directory) do
    true = PgliteEx.OperatingSystem.ended_within?(shell, 30)
    File.rm_rf!(directory)
  end

  defp command(root?, name, arguments) do
    program = [Path.join(programs(), name) | arguments]

    if root?,
      do: ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups" | program],
      else: program
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    port
  end

  defp version(directory) do
    {text, 0} = System.cmd(Path.join(directory, "postgres"), ["--version"])
    [version] = Regex.run(~r/\d+/, text)
    String.to_integer(version)
  end
end
