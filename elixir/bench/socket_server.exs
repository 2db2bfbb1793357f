# What Elixir's socket server costs beside `pglite-port serve`, side by side in one run.
#
#     MIX_ENV=test mix run bench/socket_server.exs

defmodule SocketServerBench do
  alias PgliteEx.WireClient

  @round_trips 5_000
  @rounds 5
  @rows 200_000

  def run do
    Logger.configure(level: :error)
    {:ok, server} = PgliteEx.start_link(mode: :isolated)
    {serve, os_pid} = start_serve()
    urls = [{"pglite-port serve", serve}, {"PgliteEx", PgliteEx.url(server)}]

    clients = for {name, url} <- urls, do: {name, connect(url)}
    # Taken in turns, so that what else the machine does falls on both.
    for {_name, client} <- clients, do: round_trips(client)
    samples = for _ <- 1..@rounds, {name, client} <- clients, do: {name, round_trips(client)}

    IO.puts("SELECT 1, simple query, one client (#{@rounds} x #{@round_trips}), µs")

    medians =
      for {name, _url} <- urls, do: {name, samples |> of(name) |> List.flatten() |> row(name)}

    [{_serve, base}, {_elixir, through_elixir}] = medians

    IO.puts(
      "  difference of the medians: #{Float.round(through_elixir - base, 1)} (aim: at most 60)\n"
    )

    IO.puts("COPY of #{@rows} rows, psql, ms")
    copies = for _ <- 1..@rounds, {name, url} <- urls, do: {name, copy(url)}

    for {direction, index} <- [{"in", 0}, {"out", 1}] do
      [base, through_elixir] =
        for {name, _url} <- urls do
          copies |> of(name) |> Enum.map(&elem(&1, index)) |> row("#{name}, #{direction}")
        end

      IO.puts("  speed: #{Float.round(100 * base / through_elixir, 1)} % (aim: at least 70 %)")
    end

    System.cmd("kill", ["#{os_pid}"])
    memory(server)
    PgliteEx.stop(server)
  end

  defp memory(server) do
    :erlang.garbage_collect()
    before = :erlang.memory(:total)
    clients = for _ <- 1..1_000, do: elem(WireClient.start_session!(server), 0)
    for client <- clients, do: {:ok, [["1"]]} = WireClient.query(client, "select 1")
    :erlang.garbage_collect()
    each = div(:erlang.memory(:total) - before, 1_000)

    IO.puts(
      "\n1,000 connections: #{div(each, 1_000)} kB of the VM each, with their clients (aim: below 100)"
    )
  end

  defp of(samples, name), do: for({^name, sample} <- samples, do: sample)

  defp row(samples, name) do
    sorted = Enum.sort(samples)

    at = fn share ->
      Enum.at(sorted, min(trunc(length(sorted) * share), length(sorted) - 1)) / 1
    end

    text =
      for share <- [0.5, 0.1, 0.9], do: share |> at.() |> :erlang.float_to_binary(decimals: 1)

    [median, low, high] = text
    IO.puts("  #{String.pad_trailing(name, 26)} median #{median}  (10 % #{low}, 90 % #{high})")
    at.(0.5)
  end

  defp round_trips(client) do
    message = IO.iodata_to_binary(WireClient.query_message("select 1"))

    for _ <- 1..@round_trips do
      started = System.monotonic_time()
      :ok = :gen_tcp.send(client, message)
      receive_answer(client, <<>>)
      System.convert_time_unit(System.monotonic_time() - started, :native, :nanosecond) / 1_000
    end
  end

  defp receive_answer(client, bytes) do
    {:ok, more} = :gen_tcp.recv(client, 0)
    bytes = bytes <> more
    unless WireClient.ready?(bytes), do: receive_answer(client, bytes)
  end

  defp copy(url) do
    directory = System.tmp_dir!()
    rows = Path.join(directory, "pglite_ex-bench-rows")

    unless File.exists?(rows),
      do: File.write!(rows, for(n <- 1..@rows, do: "#{n}\trow number #{n}\n"))

    script = """
    \\timing on
    create table rows (id int, name text);
    \\copy rows from '#{rows}'
    \\copy rows to '/dev/null'
    """

    path = Path.join(directory, "pglite_ex-bench.sql")
    File.write!(path, script)
    {output, 0} = System.cmd("psql", ["-X", "-q", url, "-f", path])

    [_create, copy_in, copy_out] =
      for [_, ms] <- Regex.scan(~r/Time: ([\d.]+) ms/, output), do: String.to_float(ms)

    {copy_in, copy_out}
  end

  defp connect(url) do
    %URI{host: host, port: port} = URI.parse(url)
    options = [:binary, active: false, nodelay: true, buffer: 65_536]
    {:ok, client} = :gen_tcp.connect(String.to_charlist(host), port, options)
    :ok = :gen_tcp.send(client, WireClient.startup_packet())
    {:ok, _messages} = WireClient.receive_answer(client)
    client
  end

  defp start_serve do
    {:ok, program} = PgliteEx.Executable.find()

    port =
      Port.open({:spawn_executable, program}, [
        :binary,
        line: 1_000,
        args: ["serve", "--listen", "127.0.0.1:0", "--mode", "isolated"]
      ])

    receive do
      {^port, {:data, {:eol, "postgresql://" <> _ = url}}} ->
        {:os_pid, os_pid} = Port.info(port, :os_pid)
        {String.trim(url), os_pid}
    end
  end
end

SocketServerBench.run()
