defmodule PgliteEx.Authority do
  @moduledoc "A certificate authority that is made here, for tests of encrypted connections."

  @doc """
  The options of `:ssl` for a server with a certificate for `localhost` (`:server_config`), and for a client
  that knows who has signed it (`:client_config`).
  """
  def make do
    key = {:namedCurve, :secp256r1}
    # An extension with the name of the server (RFC 5280, id-ce-subjectAltName).
    name = {:Extension, {2, 5, 29, 17}, false, [dNSName: ~c"localhost"]}

    # OpenSSL takes no certificate that is signed with SHA-1, which is the default.
    :public_key.pkix_test_data(%{
      server_chain: %{
        root: [key: key, digest: :sha256],
        intermediates: [],
        peer: [key: key, digest: :sha256, extensions: [name]]
      },
      client_chain: %{
        root: [key: key, digest: :sha256],
        intermediates: [],
        peer: [key: key, digest: :sha256]
      }
    })
  end
end
