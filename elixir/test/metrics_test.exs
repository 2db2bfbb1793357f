defmodule PgliteEx.MetricsTest do
  use ExUnit.Case, async: true

  alias PgliteEx.Servers

  test "the program answers Prometheus where metrics: says" do
    port = free_port()
    server = Servers.start!(metrics: {"127.0.0.1", port}, mode: :shared)
    assert {:ok, _stats} = PgliteEx.stats(server)
    response = get(port, "/metrics")
    assert response =~ "HTTP/1.1 200 OK"
    assert response =~ ~s(pg_up{cluster="default"} 1)
    assert get(port, "/readyz") =~ "HTTP/1.1 200 OK"
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :ok = :gen_tcp.close(socket)
    port
  end

  defp get(port, path) do
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
    :ok = :gen_tcp.send(socket, "GET #{path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    receive_all(socket, "")
  end

  defp receive_all(socket, received) do
    case :gen_tcp.recv(socket, 0, 10_000) do
      {:ok, bytes} -> receive_all(socket, received <> bytes)
      {:error, :closed} -> received
    end
  end
end
