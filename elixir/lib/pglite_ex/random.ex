defmodule PgliteEx.Random do
  @moduledoc """
  The random numbers of a branch or of an isolated cluster, which a test seeds.

      :ok = PgliteEx.Random.seed(gate, 42)
      Postgrex.query!(conn, "select random(), gen_random_uuid()", [])

  With the same seed and the same statements, every clone and every branch of a template has the same numbers.
  In a branch, the sessions share the numbers of the seed: statements have the same ones if they come in
  the same order. This covers
  `random()` and its relatives, `gen_random_uuid()`, `uuidv7()` (together with a clock that stands still, see
  `PgliteEx.Clock`), `TABLESAMPLE`, `array_shuffle()` and `array_sample()`, and what `pgcrypto` makes: ids, salts and
  session keys. Without a seed the numbers differ between clones, as those of two servers do.

  A seed holds until the cluster is gone. When the cluster is reset to its template (`PgliteEx.Template.reset/1`),
  its numbers begin with the first one again; to seed it once more has the same effect.

  Not covered are the functions of `uuid-ossp`, which mix the time and a generator of their own into their
  numbers, and what secures connections: the keys with which statements are cancelled stay unpredictable.

  A seed makes everything predictable that SQL uses as a secret, so it needs leave of the program, which a
  server in `:isolated` mode gives. In `:shared` mode the result is
  `{:error, %PgliteEx.Error{code: "42501"}}`.
  """

  alias PgliteEx.{Clock, Error, Handle}

  @doc """
  Makes the random numbers of a cluster those of `seed`, from the first one on.

  The handle is as in `PgliteEx.Clock`. `seed` is a number of 64 bits that is not negative, such as
  `ExUnit.configuration()[:seed]`.

      :ok = PgliteEx.Random.seed(gate, ExUnit.configuration()[:seed])
  """
  @spec seed(Clock.handle(), 0..0xFFFF_FFFF_FFFF_FFFF) :: :ok | {:error, Error.t()}
  def seed(handle, seed) when is_integer(seed) and seed in 0..0xFFFF_FFFF_FFFF_FFFF,
    do: Handle.request(handle, "seed", [{"seed", Integer.to_string(seed)}])
end
