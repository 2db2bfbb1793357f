defmodule PgliteEx.Workshop do
  @moduledoc false
  # Makes a template: runs the preparing function against a server of its own, and freezes its cluster.
  #
  # The caller may trap no exits, and no crash may end it. So there are three processes: the caller
  # monitors a keeper; the keeper traps exits, owns the server, and is linked to the worker; the
  # worker runs the function, and is what processes started by the function are linked to.

  alias PgliteEx.{Error, Options, ReadyForQuery, Server}

  @doc """
  Builds the template `name`. Whatever goes wrong is returned, and the server has ended by then.
  """
  @spec build(Options.t(), String.t(), String.t() | nil, (keyword -> term)) ::
          {:ok, :built} | {:error, Error.t()}
  def build(%Options{} = options, name, key, fun) do
    caller = self()
    callers = [caller | Process.get(:"$callers", [])]

    {keeper, monitor} =
      spawn_monitor(fn ->
        Process.flag(:trap_exit, true)
        work = fn connection_opts -> run(fun, connection_opts, callers) end
        exit({:shutdown, {__MODULE__, keep(options, name, key, work)}})
      end)

    receive do
      {:DOWN, ^monitor, :process, ^keeper, {:shutdown, {__MODULE__, result}}} -> result
      {:DOWN, ^monitor, :process, ^keeper, reason} -> {:error, failed(reason)}
    end
  end

  # A server of its own, so that nothing but the function leaves traces in the cluster.
  defp keep(options, name, key, work) do
    workshop_options =
      options
      |> Map.take([:executable, :pglite_dir, :cache_dir, :icu_data, :username, :log_level])
      |> Keyword.new()

    with {:ok, workshop} <- start(workshop_options) do
      try do
        with :ok <- create_database(workshop, name),
             :ok <- work.(PgliteEx.connection_opts(workshop, database: name)),
             :ok <- in_session(workshop, name, &PgliteEx.freeze(&1, name, key: key)),
             do: {:ok, :built}
      after
        stop(workshop)
      end
    end
  end

  defp start(options) do
    case PgliteEx.start_link(options) do
      {:ok, workshop} -> {:ok, workshop}
      # The exit reason of a process that did not start, some with a stack trace.
      {:error, {%Error{} = error, _stacktrace}} -> {:error, error}
      {:error, %Error{} = error} -> {:error, error}
      {:error, reason} -> {:error, failed(reason)}
    end
  end

  defp stop(workshop) do
    PgliteEx.stop(workshop)
  catch
    :exit, _given_up -> :ok
  end

  defp run(fun, connection_opts, [caller | _] = callers) do
    monitor = Process.monitor(caller)

    worker =
      spawn_link(fn ->
        # As `Task` does: Ecto's sandbox and others look up the process that asked for the work.
        Process.put(:"$callers", callers)

        try do
          fun.(connection_opts)
        catch
          kind, reason ->
            failure = Exception.format(kind, reason, __STACKTRACE__)
            exit({:shutdown, {__MODULE__, failure}})
        end
      end)

    receive do
      {:EXIT, ^worker, :normal} ->
        :ok

      {:EXIT, ^worker, {:shutdown, {__MODULE__, failure}}} ->
        {:error,
         %Error{code: :prepare_failed, message: "the preparing function failed: #{failure}"}}

      {:EXIT, ^worker, reason} ->
        {:error, failed(reason)}

      {:DOWN, ^monitor, :process, ^caller, _reason} ->
        Process.exit(worker, :kill)
        {:error, %Error{code: :prepare_failed, message: "the calling process has ended"}}
    end
  end

  defp failed(reason) do
    message =
      "a process that the preparation is linked to ended: " <> Exception.format_exit(reason)

    %Error{code: :prepare_failed, message: message}
  end

  # Whether it worked is seen when the session that is to be frozen asks for this database.
  defp create_database(workshop, name) do
    sql = "create database \"#{String.replace(name, "\"", "\"\"")}\""
    in_session(workshop, "postgres", &ask(&1, [<<?Q, byte_size(sql) + 5::32>>, sql, 0]))
  end

  # Gives `fun` a connection whose session waits for input.
  defp in_session(server, database, fun) do
    with {:ok, connection} <- PgliteEx.open(server) do
      try do
        with :ok <- ask(connection, startup_packet(server, database)), do: fun.(connection)
      after
        PgliteEx.close(connection)
      end
    end
  end

  # A startup packet of protocol 3.0.
  defp startup_packet(server, database) do
    parameters = ["user", 0, Server.options(server).username, 0, "database", 0, database, 0, 0]
    [<<IO.iodata_length(parameters) + 8::32, 3::16, 0::16>> | parameters]
  end

  # Sends a message, and receives whatever comes until the session waits for input again.
  defp ask(connection, message) do
    monitor = Process.monitor(connection)
    # Why it could not be sent comes as a message.
    _ = PgliteEx.send(connection, message)
    answer = await_ready(connection, monitor, <<>>)
    Process.demonitor(monitor, [:flush])
    answer
  end

  defp await_ready(connection, monitor, tail) do
    receive do
      {:pglite_ex, ^connection, {:data, bytes}} ->
        tail = ReadyForQuery.tail(tail, [bytes])
        if ReadyForQuery.at_end?(tail), do: :ok, else: await_ready(connection, monitor, tail)

      {:pglite_ex, ^connection, {:closed, reason}} ->
        {:error, Error.from_reason(reason)}

      {:DOWN, ^monitor, :process, ^connection, _killed} ->
        {:error, %Error{code: "08003", message: "the connection is closed"}}
    end
  end
end
