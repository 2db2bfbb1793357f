defmodule PgliteEx.TaskServer do
  @moduledoc false
  # The server beside which `mix pglite_ex.server --and` runs tasks.
  #
  # A task may start the application, which has the same server among its children. The child is not
  # started then, because it would find its address, its directory or its name taken.

  alias PgliteEx.{Options, Preparation, Server}

  @key __MODULE__

  @type place :: pid | :elsewhere

  @doc """
  Says that tasks run beside a server with these options: in this VM, or in another one that listens
  at the address already.
  """
  @spec put(Options.t(), place) :: :ok
  def put(%Options{} = options, place),
    do: Application.put_env(:pglite_ex, @key, {options, place})

  @doc "Where the server with these options runs, if tasks run beside it."
  @spec place(Options.t()) :: nil | place
  def place(options) do
    with {running, place} <- Application.get_env(:pglite_ex, @key),
         true <- same?(running, options) and (place == :elsewhere or Process.alive?(place)),
         do: place,
         else: (_none -> nil)
  end

  @doc "Says that no task runs beside a server any more."
  @spec delete() :: :ok
  def delete, do: Application.delete_env(:pglite_ex, @key)

  @doc """
  The start function of a server as a child. The function of `:after_start` runs in any case; the
  server beside which tasks run was started without it.
  """
  @spec start_child(keyword) :: Supervisor.on_start() | :ignore
  def start_child(options) do
    options = Options.new!(options)

    case place(options) do
      nil ->
        Server.start_link(options)

      :elsewhere ->
        :ignore

      server ->
        with :ok <- Preparation.apply_function(options, PgliteEx.connection_opts(server)),
             do: :ignore
    end
  end

  @doc "Connection options of the server, if it runs in another VM and has this name."
  @spec connection_opts(PgliteEx.server()) :: nil | keyword
  def connection_opts(server) do
    with {%{name: ^server} = options, :elsewhere} <- Application.get_env(:pglite_ex, @key),
         do: Server.connection_opts(server, options, options.listen),
         else: (_another -> nil)
  end

  defp same?(one, other) do
    (one.name != nil and one.name == other.name) or
      (one.listen == other.listen and fixed?(one.listen))
  end

  @doc "Whether an address is known before a server listens at it."
  @spec fixed?(Options.listen()) :: boolean
  def fixed?({:local, _path}), do: true
  def fixed?({_host, port}), do: port != 0
end
