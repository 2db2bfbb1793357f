defmodule PgliteEx.ErrorTest do
  use ExUnit.Case, async: true

  doctest PgliteEx.Error
end
