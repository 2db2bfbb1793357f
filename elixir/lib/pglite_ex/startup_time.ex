defmodule PgliteEx.StartupTime do
  @moduledoc false
  # How long a client may take before PostgreSQL sees it: `authentication_timeout` in the option `settings:`, read as
  # PostgreSQL reads it but for other forms of numbers, such as 0x5. The program does the same
  # (`src/connection/startup_time.rs`).

  alias PgliteEx.Options

  # PostgreSQL's default, and its range, in seconds (`src/backend/utils/misc/guc_parameters.dat`).
  @default 60
  @range 1..600
  # In seconds.
  @units %{
    "" => 1,
    "us" => 1.0e-6,
    "ms" => 0.001,
    "s" => 1,
    "min" => 60,
    "h" => 3_600,
    "d" => 86_400
  }

  @doc """
  The time in milliseconds. A value that is no time is not looked at: the program refuses it.

      iex> limit = fn settings -> PgliteEx.StartupTime.limit(%PgliteEx.Options{listen: nil, settings: settings}) end
      iex> for value <- [5, "5", "5s", " 2 min ", "1500ms", "0", "1 hour", "s"],
      ...>     do: limit.(authentication_timeout: value)
      [5000, 5000, 5000, 120000, 2000, 60000, 60000, 60000]
      iex> limit.([])
      60000
  """
  @spec limit(Options.t()) :: pos_integer
  def limit(%Options{settings: settings}) do
    # The last one counts.
    named = for {name, value} <- settings, of_time?(name), do: seconds(to_string(value))
    1_000 * (List.last(named) || @default)
  end

  defp of_time?(name), do: String.downcase(to_string(name)) == "authentication_timeout"

  defp seconds(text) do
    with {number, unit} <- Float.parse(String.trim(text)),
         {:ok, factor} <- Map.fetch(@units, String.trim(unit)),
         seconds when seconds in @range <- round(number * factor),
         do: seconds,
         else: (_refused -> nil)
  end
end
