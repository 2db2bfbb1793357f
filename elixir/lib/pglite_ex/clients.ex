defmodule PgliteEx.Clients do
  @moduledoc false
  # The supervisor of the connections of a server or a gate, and of the process that accepts them.
  #
  # They are apart from the owner of the port: the end of the program interrupts no hand-over of a
  # socket, and an acceptor that is restarted does not end the program.

  use Supervisor

  alias PgliteEx.{Connection, Parts, SocketServer}

  # Errors of the listening socket, which are repeated until its owner has noticed them.
  @max_restarts 10
  @max_seconds 10

  @doc "Starts accepting clients."
  @spec start_link(SocketServer.context()) :: Supervisor.on_start()
  def start_link(context), do: Supervisor.start_link(__MODULE__, context)

  @impl Supervisor
  def init(%{registry: registry} = context) do
    children = [
      {DynamicSupervisor, strategy: :one_for_one, name: Parts.name(registry, Connection)},
      {SocketServer, context}
    ]

    Supervisor.init(children,
      strategy: :rest_for_one,
      max_restarts: @max_restarts,
      max_seconds: @max_seconds
    )
  end
end
