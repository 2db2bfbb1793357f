defmodule PgliteEx.Sandbox.Types do
  @moduledoc false
  # Passes on what Postgrex has learnt about the types of one branch to further branches of the same base.
  #
  # Postgrex asks each address for the types of its database, and a branch has an address of its own. The answer
  # is the same for all branches, because they begin with the types of the base, and takes longer than the rest of a
  # connection. What a branch adds to these types later stays its own.
  #
  # Postgrex has no public function for this. Without those that are used here, and with other drivers, every branch
  # is asked.

  alias Postgrex.{Protocol, TypeServer, TypeSupervisor}

  @functions [{TypeSupervisor, :locate, 2}, {TypeServer, :fetch, 1}] ++
               [{TypeServer, :update, 3}, {TypeServer, :done, 2}]

  @type t :: [struct]

  @doc "What is known about the types of the database that connections with these options are to; nothing is `[]`."
  @spec read(module, keyword) :: t
  def read(module, opts) do
    with_table(module, opts, fn server, lock, table ->
      types = for {_oid, type, _how} <- :ets.tab2list(table), do: type
      TypeServer.done(server, lock)
      types
    end)
  end

  @doc "Makes these types known for connections with these options, unless some are."
  @spec write(t, module, keyword) :: :ok
  def write([], _module, _opts), do: :ok

  def write(types, module, opts) do
    with_table(module, opts, fn server, lock, table ->
      if :ets.info(table, :size) == 0,
        do: TypeServer.update(server, lock, types),
        else: TypeServer.done(server, lock)
    end)

    :ok
  end

  # The calling process is linked to the type server, which ends some time after the last such process.
  defp with_table(Protocol, opts, fun) do
    with true <- Enum.all?(@functions, &exported?/1),
         server = TypeSupervisor.locate(opts[:types], key(opts)),
         {:lock, lock, {_module, table}} <- TypeServer.fetch(server),
         do: fun.(server, lock, table),
         else: (_another_version -> [])
  end

  defp with_table(_another_driver, _opts, _fun), do: []

  defp exported?({module, name, arity}),
    do: Code.ensure_loaded?(module) and function_exported?(module, name, arity)

  defp key(opts) do
    {host, port} =
      if opts[:socket],
        do: {{:local, opts[:socket]}, 0},
        else: {String.to_charlist(opts[:hostname]), opts[:port]}

    {host, port, opts[:database]}
  end
end
