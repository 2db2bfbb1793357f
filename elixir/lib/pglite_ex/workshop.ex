defmodule PgliteEx.Workshop do
  @moduledoc false
  # Makes a template: runs the preparing function against a server of its own, and freezes its cluster.
  #
  # The caller may trap no exits, and no crash may end it. So there are three processes: the caller
  # monitors a keeper; the keeper traps exits, owns the server, and is linked to the worker; the
  # worker runs the function, and is what processes started by the function are linked to.

  alias PgliteEx.{Error, Options, Parts, Session}

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
      |> Keyword.put(:database, name)

    with {:ok, workshop} <- start(workshop_options) do
      try do
        freeze = &PgliteEx.freeze(&1, name, key: key)

        with :ok <- work.(PgliteEx.connection_opts(workshop)),
             :ok <- Session.run(Parts.registry!(workshop), name, [], freeze),
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
end
