defmodule PgliteEx.Health do
  @moduledoc false
  # What `PgliteEx.health/2` tells: whether a server's program answers and lets clients in, and its figures.

  alias PgliteEx.{Branch, Channel, Error, Parts, Readiness}

  @type t :: %{live: true, ready: boolean, figures: %{String.t() => integer}}

  @doc "See `PgliteEx.health/2`."
  @spec check(PgliteEx.server() | Branch.t(), timeout) :: {:ok, t} | {:error, Error.t()}
  def check(server, timeout) do
    server = Branch.server(server)

    # Asked first: what has answered may have become ready since.
    with registry when registry != nil <- Parts.registry(server),
         ready = match?({:ok, _wasm_port}, Readiness.await(registry, 0)),
         {:ok, figures} <- PgliteEx.request(server, "stats", [], timeout) do
      figures = Map.new(figures, fn {name, figure} -> {name, String.to_integer(figure)} end)
      {:ok, %{live: true, ready: ready and figures["ready"] == 1, figures: figures}}
    else
      nil -> stopped()
      {:error, error} -> {:error, error}
    end
  catch
    # The server was stopped just then.
    :exit, {:noproc, _call} -> stopped()
  end

  defp stopped, do: {:error, Error.from_reason(Channel.program_gone())}
end
