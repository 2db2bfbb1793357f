defmodule PgliteEx.Delivery do
  @moduledoc false
  # Sends a template to the servers of other nodes: see `PgliteEx.Template.replicate/4`.
  #
  # The template is exported into a file, once for all nodes, and compressed. On each node a process asks for one piece
  # after the other, writes them into a file, and has its program import that. Whichever end goes away, the other one
  # removes its file.

  alias PgliteEx.{Error, Parts, Template}

  # Bytes of a piece. A message of that size is sent in parts, between those of other processes.
  @piece 256 * 1024
  # zlib's fastest: the network is the slower part of it, but not by much.
  @level 1

  @type outcome :: :sent | :reused | {:error, Error.t()}

  @doc "See `PgliteEx.Template.replicate/4`; `digest` is that of the template on this node."
  @spec deliver(PgliteEx.server(), String.t(), String.t(), [node], keyword) ::
          {:ok, %{node => :sent | :reused}} | {:error, Error.t()}
  def deliver(server, name, digest, nodes, options) do
    nodes = Enum.uniq(nodes)

    arguments = [options[:server], name, digest]
    ask = &:erpc.call(&1, __MODULE__, :present?, arguments, options[:timeout])
    answers = nodes |> each(ask) |> Map.new()
    without = for node <- nodes, answers[node] == false, do: node

    with {:ok, sent} <- send_to(without, server, name, options) do
      answers
      |> Map.new(fn {node, answer} -> {node, if(answer == true, do: :reused, else: answer)} end)
      |> Map.merge(sent)
      |> result(name)
    end
  end

  defp result(outcomes, name) do
    case for {node, {:error, error}} <- Enum.sort(outcomes), do: {node, error} do
      [] ->
        {:ok, outcomes}

      [{_node, first} | _others] = failed ->
        reasons = Enum.map_join(failed, "; ", fn {node, error} -> "#{node}: #{error.message}" end)
        message = "the template #{inspect(name)} was not replicated to #{reasons}"
        {:error, %Error{first | message: message}}
    end
  end

  defp send_to([], _server, _name, _options), do: {:ok, %{}}

  defp send_to(nodes, server, name, options) do
    in_directory(fn directory ->
      [exported, compressed] =
        for name <- ["template", "compressed"], do: Path.join(directory, name)

      with {:ok, _figures} <- Template.export(server, name, exported) do
        compress(exported, compressed)
        File.rm!(exported)
        {:ok, nodes |> each(&send_file(&1, compressed, options)) |> Map.new()}
      end
    end)
  end

  # Each in a process of its own, because the answer of a node may be any message.
  defp each(nodes, fun) do
    settings = [max_concurrency: max(length(nodes), 1), timeout: :infinity]
    for {:ok, pair} <- Task.async_stream(nodes, &{&1, caught(fun, &1)}, settings), do: pair
  end

  defp caught(fun, node) do
    fun.(node)
  catch
    kind, reason -> {:error, failed(kind, reason)}
  end

  defp send_file(node, path, options) do
    file = File.open!(path, [:read, :raw, :binary])
    reference = make_ref()
    timeout = options[:timeout]
    timer = if is_integer(timeout), do: Process.send_after(self(), reference, timeout)
    arguments = [options[:server], self(), reference]

    try do
      serve(file, reference, :erpc.send_request(node, __MODULE__, :fetch, arguments))
    after
      if timer, do: Process.cancel_timer(timer)
      File.close(file)
    end
  end

  defp serve(file, reference, request) do
    receive do
      {^reference, fetcher, :next} ->
        send(fetcher, {reference, :file.read(file, @piece)})
        serve(file, reference, request)

      # The process on the other node sees that this one has ended.
      ^reference ->
        {:error, %Error{code: :timeout, message: "it did not get the template in time"}}

      message ->
        case :erpc.check_response(message, request) do
          {:response, outcome} -> outcome
          :no_response -> serve(file, reference, request)
        end
    end
  end

  defp failed(:error, {:erpc, :timeout}),
    do: %Error{code: :timeout, message: "it did not answer in time"}

  defp failed(:error, {:erpc, reason}), do: failure("there is no connection to it (#{reason})")

  defp failed(:error, {:exception, :undef, [{__MODULE__, _function, _arity, _place} | _stack]}),
    do: failure("it does not have this version of PgliteEx")

  defp failed(:error, {:exception, reason, stacktrace}),
    do: failure(Exception.format_banner(:error, reason, stacktrace))

  defp failed(kind, {:exception, reason}), do: failed(kind, reason)

  defp failed(:exit, {:noproc, {Parts, _function, [server]}}),
    do: failure("it has no server #{inspect(server)}")

  defp failed(kind, reason), do: failure(Exception.format_banner(kind, reason))

  defp failure(message), do: %Error{code: :replication_failed, message: message}

  @doc "Called on another node: whether its server has that template."
  @spec present?(PgliteEx.server(), String.t(), String.t()) :: boolean | {:error, Error.t()}
  def present?(server, name, digest) do
    with {:ok, templates} <- Template.list(server),
         do: Enum.any?(templates, &(&1.name == name and &1.digest == digest))
  end

  @doc "Called on another node: fetches a template from the process `source` and imports it."
  @spec fetch(PgliteEx.server(), pid, reference) :: outcome
  def fetch(server, source, reference) do
    # Of several that send it at the same time, one does.
    :global.trans(
      {{__MODULE__, server}, self()},
      fn -> fetch_alone(server, source, reference) end,
      [node()]
    )
  end

  defp fetch_alone(server, source, reference) do
    monitor = Process.monitor(source)

    in_directory(fn directory ->
      path = Path.join(directory, "template")

      with :ok <- write(path, source, monitor, reference),
           {:ok, %{result: result}} <- Template.import(server, path),
           do: if(result == :imported, do: :sent, else: :reused)
    end)
  end

  defp write(path, source, monitor, reference) do
    file = File.open!(path, [:write, :raw, :binary, :exclusive, :delayed_write])
    zlib = :zlib.open()

    try do
      :ok = :zlib.inflateInit(zlib)
      receive_all(file, zlib, {source, monitor, reference})
    after
      :zlib.close(zlib)
      File.close(file)
    end
  end

  defp receive_all(file, zlib, {source, monitor, reference} = from) do
    send(source, {reference, self(), :next})

    receive do
      {^reference, {:ok, piece}} ->
        with :ok <- inflate(file, zlib, :zlib.safeInflate(zlib, piece)),
             do: receive_all(file, zlib, from)

      {^reference, :eof} ->
        :ok

      {^reference, {:error, reason}} ->
        {:error, posix(reason, "read on the node that sends it")}

      {:DOWN, ^monitor, :process, _pid, _reason} ->
        {:error, failure("the process that sends it is gone")}
    end
  end

  # In small pieces, however well it was compressed.
  defp inflate(file, zlib, {continue, output}) do
    case :file.write(file, output) do
      :ok when continue == :continue -> inflate(file, zlib, :zlib.safeInflate(zlib, []))
      :ok -> :ok
      {:error, reason} -> {:error, posix(reason, "written to the temporary directory")}
    end
  end

  defp compress(from, to) do
    zlib = :zlib.open()
    output = File.open!(to, [:write, :raw, :binary, :exclusive])

    try do
      :ok = :zlib.deflateInit(zlib, @level)

      for piece <- File.stream!(from, [], @piece),
          do: :ok = :file.write(output, :zlib.deflate(zlib, piece))

      :ok = :file.write(output, :zlib.deflate(zlib, [], :finish))
    after
      :zlib.close(zlib)
      File.close(output)
    end
  end

  defp posix(reason, what) do
    message = "the file of the template cannot be #{what}: #{:file.format_error(reason)}"
    %Error{code: reason, message: message}
  end

  # A template may have secrets: nobody else reads what is in the directory. A process removes it also when this one is
  # killed.
  defp in_directory(fun) do
    random = Base.url_encode64(:crypto.strong_rand_bytes(12), padding: false)
    directory = Path.join(System.tmp_dir!(), "pglite_ex-#{random}")
    owner = self()
    cleaned = make_ref()

    {cleaner, monitor} =
      spawn_monitor(fn ->
        watched = Process.monitor(owner)
        File.mkdir!(directory)
        File.chmod!(directory, 0o700)
        send(owner, cleaned)

        receive do
          ^cleaned -> :ok
          {:DOWN, ^watched, :process, _pid, _reason} -> :ok
        end

        File.rm_rf!(directory)
      end)

    receive do
      ^cleaned ->
        try do
          fun.(directory)
        after
          send(cleaner, cleaned)
          receive do: ({:DOWN, ^monitor, :process, _pid, _reason} -> :ok)
        end

      {:DOWN, ^monitor, :process, _pid, reason} ->
        {:error, failure("no temporary directory can be made: " <> Exception.format_exit(reason))}
    end
  end
end
