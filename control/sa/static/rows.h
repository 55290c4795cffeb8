// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "control/sa/source.h"
#include "control/sa/static/static_sas.h"

namespace sallyport::control {

// What `show sa` tells of an SA of the configuration.
SaRow row_of(const ManagedSa& sa);

}  // namespace sallyport::control
