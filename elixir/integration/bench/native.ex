defmodule Integration.Native do
  @moduledoc "Native PostgreSQL 18 with a new cluster, for comparison."

  # Where `make target/postgres-18/bin` puts its programs.
  @programs Path.expand("../../../target/postgres-18/bin", __DIR__)
  # On the disk of the project, because the temporary directory may be in memory.
  @directory Path.expand("../../../target/tmp", __DIR__)
  # How long it may take to start, in milliseconds.
  @patience 30_000

  @doc "Starts it, until the script ends. Returns its options for Postgrex and the process id of its postmaster."
  @spec start!() :: {keyword, pos_integer}
  def start! do
    File.exists?(Path.join(@programs, "postgres")) ||
      raise "run `make target/postgres-18/bin` first"

    directory = Path.join(@directory, "native-#{System.pid()}")
    File.mkdir_p!(directory)
    {prefix, owner} = unprivileged()
    if owner, do: {_output, 0} = System.cmd("chown", [owner, directory])
    data = Path.join(directory, "data")

    {_output, 0} =
      run(
        prefix,
        "initdb",
        ~w(--auth=trust --username=postgres --encoding=UTF8 --no-locale -D #{data})
      )

    port = free_port()

    settings = [
      "listen_addresses=127.0.0.1",
      "port=#{port}",
      "unix_socket_directories=#{directory}"
    ]

    arguments = [
      "-w",
      "-t",
      "#{div(@patience, 1_000)}",
      "-l",
      Path.join(directory, "log"),
      "-D",
      data
    ]

    options = Enum.map_join(settings, " ", &"-c #{&1}")
    # Also when the start or the script fails.
    System.at_exit(fn _status ->
      run(prefix, "pg_ctl", ["-w", "-m", "immediate", "-D", data, "stop"])
      File.rm_rf!(directory)
    end)

    {_output, 0} = run(prefix, "pg_ctl", arguments ++ ["-o", options, "start"])
    [os_pid | _lines] = data |> Path.join("postmaster.pid") |> File.read!() |> String.split("\n")

    opts = [hostname: "127.0.0.1", port: port, username: "postgres", database: "postgres"]
    {opts, String.to_integer(os_pid)}
  end

  defp run(prefix, program, arguments) do
    [command | first] = prefix ++ [Path.join(@programs, program)]
    System.cmd(command, first ++ arguments, cd: "/", stderr_to_stdout: true)
  end

  # A server refuses to be run by root.
  defp unprivileged do
    case System.cmd("id", ["-u"]) do
      {"0\n", 0} -> {~w(setpriv --reuid=nobody --regid=nogroup --clear-groups), "nobody:nogroup"}
      {_other, 0} -> {[], nil}
    end
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :ok = :gen_tcp.close(socket)
    port
  end
end
